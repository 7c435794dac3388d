"""Handlers of signals around Ray, which replaces them by its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNDER_RUN = """
import signal, sys
from pipeline.process import signals

def exits(number, frame):
    sys.exit(0)

def command():
    with signals.own_handlers():
        signal.signal(signal.SIGINT, exits)
        signal.raise_signal(signal.SIGINT)

sys.exit(signals.run(command, "interrupted"))
"""


def test_a_handler_of_ray_that_exits_is_an_interrupt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_RUN], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


IN_A_NOTEBOOK = """
import signal
from pipeline.process import signals

before = signal.getsignal(signal.SIGINT)
try:
    with signals.own_handlers():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise {error}
except {error}:
    assert signal.getsignal(signal.SIGINT) is before
    assert not signals.interrupted()
    print("as before")
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
def test_a_process_of_another_command_keeps_its_handlers(error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK.format(error=error)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "as before\n", done.stderr
