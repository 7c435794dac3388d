"""Signals: SIGINT and SIGTERM end a command, in bounded time wherever it waits."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

INTERRUPTED = 130
"""Exit code of a command that a signal ended."""

STOP_TIMEOUT_S = 20
"""Time for an interrupted command to end what it started."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt, and ignore later ones.

    Python calls a handler only when the call under way returns, and a library may wait in C for
    minutes. So a thread also learns of the signal, and ends the process STOP_TIMEOUT_S later.
    """
    # SIGINT as well: a shell without job control starts background commands with it ignored.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_exit_in_time, args=(receiver, sender), daemon=True).start()


def ignore_signals() -> None:
    """Ignore further signals while the process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(*_: object) -> None:
    ignore_signals()
    raise KeyboardInterrupt


def _exit_in_time(receiver: socket.socket, _sender: socket.socket) -> None:
    while receiver.recv(1)[0] not in SIGNALS:
        pass
    time.sleep(STOP_TIMEOUT_S)
    os.write(2, f"interrupted; forced to end after {STOP_TIMEOUT_S} s\n".encode())
    os._exit(INTERRUPTED)
