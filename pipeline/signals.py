"""Signals: SIGINT and SIGTERM end a command, in bounded time wherever it waits."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import NoReturn

EXIT_CODE = 130
"""Exit code of a command that a signal ended."""

STOP_TIMEOUT_S = 20
"""Time for an interrupted command to end what it started."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

_interrupted = threading.Event()


def exit_on_signals(message: str) -> None:
    """Let SIGINT and SIGTERM end the process at once, with a line on stderr.

    This is for the imports at the start of a command, when there is nothing to end. An exception in
    the midst of an import crashes some libraries, and others take it for an error of their own.
    """

    def leave(*_: object) -> NoReturn:
        os.write(2, f"{message}\n".encode())
        os._exit(EXIT_CODE)

    # SIGINT as well: a shell without job control starts background commands with it ignored.
    for number in _NUMBERS:
        signal.signal(number, leave)


def interrupt_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt, and ignore later ones.

    Python calls a handler only when the call under way returns, and a library may wait in C for
    minutes. So a thread learns of the signal too, and ends the process STOP_TIMEOUT_S later.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_exit_in_time, args=(receiver, sender), daemon=True).start()
    for number in _NUMBERS:
        signal.signal(number, interrupt)


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, and ignore further signals."""
    _interrupted.set()
    ignore_signals()
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Return whether a signal has interrupted this process.

    Libraries may turn the exception into others.
    """
    return _interrupted.is_set()


def ignore_signals() -> None:
    """Ignore signals while the process ends: an exception then would print a trace."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _exit_in_time(receiver: socket.socket, _sender: socket.socket) -> None:
    while receiver.recv(1)[0] not in _NUMBERS:
        pass
    time.sleep(STOP_TIMEOUT_S)
    os.write(2, f"interrupted; it did not end by itself within {STOP_TIMEOUT_S} s\n".encode())
    os._exit(EXIT_CODE)
