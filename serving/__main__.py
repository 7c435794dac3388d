"""`python -m serving`: serve a model over HTTP on this machine, until Ctrl-C or SIGTERM.

Prints one line on stdout when the server answers: serving NAME/VERSION at URL. Exit codes: 0, it
was asked to stop; 2, an error that the user can fix, in one line on stderr; 130, it was interrupted
before it was ready.
"""

from __future__ import annotations

import sys

from pipeline.signals import INTERRUPTED, interrupt_on_signals


def main() -> int:
    """Serve until a signal, and return the exit code."""
    interrupt_on_signals()
    try:
        # These imports take a second, in which a signal must find its handler set.
        from serving.command_line import run_server

        return run_server()
    except KeyboardInterrupt:
        print("interrupted before the server was ready", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
