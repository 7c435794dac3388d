"""`python -m pipeline`: run the command line, and end it in one line if it is interrupted.

Exit codes: 0, success; 1, a bug, with its traceback; 2, an error that the user can fix, in one
line; 130, interrupted.
"""

from __future__ import annotations

import sys

from pipeline.cluster import ray_hooks
from pipeline.errors import UserError
from pipeline.process import environment, signals

INTERRUPTED = "interrupted; run the same command again to continue"


def main() -> int:
    """Run one stage and return the exit code. Raise KeyboardInterrupt if it is interrupted."""
    try:
        environment.prepare()
        ray_hooks.bound_answers()
        # Imports take a second. Signals and the environment come before them.
        from pipeline.command_line import run_stage

        run_stage()
    except UserError as error:
        signals.ignore()
        if signals.interrupted():
            raise
        from pipeline.console import console

        console.print(f"error: {error}", style="red")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(signals.run(main, INTERRUPTED))
