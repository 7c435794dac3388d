"""`python -m serving`: serve a model over HTTP on this machine, until Ctrl-C or SIGTERM.

Prints one line on stdout when the server answers: serving NAME/VERSION at URL. Exit codes: 0, it
was asked to stop; 2, an error that the user can fix, in one line on stderr; 130, it was interrupted
before it was ready.
"""

from __future__ import annotations

import sys

from pipeline.errors import UserError
from pipeline.process import environment, signals
from serving.ingress.rules import MAX_CONNECTIONS

INTERRUPTED = "interrupted before the server was ready"

MIN_FILES = 2 * MAX_CONNECTIONS + 1024
"""Files that HAProxy opens: two for each connection, and about 540 others."""


def main() -> int:
    """Serve until a signal, and return the exit code.

    Raise KeyboardInterrupt if a signal comes before the server is ready.
    """
    try:
        environment.prepare(min_files=MIN_FILES)
        # Imports take a second. Signals and the environment come before them.
        from serving.command_line import run_server

        run_server()
    except UserError as error:
        signals.ignore()
        if signals.interrupted():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(signals.run(main, INTERRUPTED))
