"""Signals: SIGINT and SIGTERM end a command, in bounded time wherever it waits."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130
"""Exit code of a command that a signal ended."""

STOP_TIMEOUT_S = 20
"""Time for an interrupted command to end what it started."""

IMPORT_POLL_S = 0.01

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

_interrupted = threading.Event()


def run(command: Callable[[], int], message: str) -> int:
    """Run a command, and return its exit code.

    The first SIGINT or SIGTERM raises KeyboardInterrupt in it, and later ones are ignored. If it
    does not catch that, the process ends with the message on stderr and EXIT_CODE.
    """
    try:
        _watch()
        code = command()
        # A signal while Python ends would print a trace.
        ignore()
    except BaseException:
        if not interrupted():
            raise
        _leave(message)
    return code


def _watch() -> None:
    """Let `interrupt` handle the signals, and a thread end the process STOP_TIMEOUT_S after one.

    Python calls a handler only when the call under way returns, and a library may wait in C for
    minutes.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_exit_in_time, args=(receiver, sender), daemon=True).start()
    # SIGINT as well: a shell without job control starts background commands with it ignored.
    for number in _NUMBERS:
        signal.signal(number, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt and ignore further signals; during an import, when that is over.

    An exception in the midst of an import crashes some libraries, and others take it for an error
    of their own.
    """
    if _imports(frame):
        timer = threading.Timer(IMPORT_POLL_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        return
    _interrupted.set()
    ignore()
    raise KeyboardInterrupt


@contextmanager
def own_handlers() -> Iterator[None]:
    """Restore the handlers of the signals, which Ray replaces by its own, and removes when it ends.

    Under `run`, raise KeyboardInterrupt if one of Ray's handlers exits.
    """
    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if interrupted() or handlers[signal.SIGTERM] is not interrupt:
            raise
        interrupt(signal.SIGTERM, None)
    finally:
        if threading.current_thread() is threading.main_thread() and not interrupted():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def interrupted() -> bool:
    """Return whether KeyboardInterrupt was raised; a library may have turned it into another."""
    return _interrupted.is_set()


def ignore() -> None:
    """Ignore signals from now on: the command is at its end."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _leave(message: str) -> NoReturn:
    """End the interrupted process with a line on stderr.

    Python's own end is left out: it crashes if a thread is in the midst of an import.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def _imports(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _exit_in_time(receiver: socket.socket, _sender: socket.socket) -> None:
    while receiver.recv(1)[0] not in _NUMBERS:
        pass
    time.sleep(STOP_TIMEOUT_S)
    _leave(f"interrupted; it did not end by itself within {STOP_TIMEOUT_S} s")
