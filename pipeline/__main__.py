"""`python -m pipeline`: run the command line, and end it in one line if it is interrupted.

Exit codes: 0, success; 1, a bug, with its traceback; 2, an error that the user can fix, in one
line; 130, interrupted.
"""

from __future__ import annotations

import sys

from pipeline import environment
from pipeline.errors import UserError
from pipeline.signals import INTERRUPTED, ignore_signals, interrupt_on_signals


def main() -> int:
    """Run one stage and return the exit code."""
    try:
        interrupt_on_signals()
        environment.prepare()
        # These imports take a second, in which a signal must find its handler set.
        from pipeline.command_line import run_stage

        run_stage()
    except UserError as error:
        from pipeline.console import console

        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    finally:
        # A signal while Python ends would print a trace.
        ignore_signals()
    return 0


if __name__ == "__main__":
    sys.exit(main())
