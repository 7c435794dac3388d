"""infra/jobs/submit.sh with a cluster that does not always answer: the program `ray` is a stub."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.processes import Command, wait_for

SCRIPT = Path(__file__).parents[2] / "infra/jobs/submit.sh"

RAY = """#!/bin/bash
# Answers the n-th `ray job status` with the n-th word of ANSWERS, and all later ones with the last.
echo "$*" >> "$CALLS"
case $2 in
  submit) exit "$SUBMITTED" ;;
  logs) exec sleep "$LOG_S" ;;
  status)
    answers=($ANSWERS)
    n=$(grep -c 'job status' "$CALLS")
    answer=${answers[n - 1]:-${answers[-1]}}
    [ "$answer" != none ] && echo "Job '$4' $answer"
    ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Return the file of the calls of `ray`; beside it are the stubs of `ray` and of `sleep 5`."""
    programs = {"ray": RAY, "sleep": '#!/bin/sh\n[ "$1" = 5 ] || exec /bin/sleep "$1"\n'}
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path / "calls"


def submit(calls: Path, *answers: str, submitted: int = 0, log_s: int = 0) -> Command:
    return Command(
        SCRIPT,
        env={
            "PATH": f"{calls.parent}:{os.environ['PATH']}",
            "PIPELINE_ROOT": "/shared",
            "CALLS": str(calls),
            "ANSWERS": " ".join(answers),
            "SUBMITTED": str(submitted),
            "LOG_S": str(log_s),
        },
    )


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (("none", "running", "none", "none", "succeeded"), 0),
        (("none", "failed"), 1),
        (("running", "stopped"), 1),
    ],
)
def test_a_status_that_cannot_be_had_is_asked_for_again(
    calls: Path, answers: tuple[str, ...], code: int
) -> None:
    assert submit(calls, *answers).run().returncode == code


def test_a_cluster_that_never_answers_again_ends_the_wait(calls: Path) -> None:
    completed = submit(calls, "none").run()
    assert completed.returncode == 1
    assert "did not tell the status of job" in completed.stderr
    assert calls.read_text().count("job status") == 12


def test_a_refused_submission_ends_at_once(calls: Path) -> None:
    assert submit(calls, "none", submitted=1).run().returncode == 1
    assert "job status" not in calls.read_text()


def test_an_interrupted_submission_stops_the_job(calls: Path) -> None:
    command = submit(calls, "running", log_s=60)
    with command.started() as process:
        wait_for(lambda: calls.exists() and "job logs" in calls.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 130
    assert "job stop pipeline-" in calls.read_text()
    assert command.running() == []
