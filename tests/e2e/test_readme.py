"""The commands of the README do what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.command_line import STAGES
from serving.ingress.ports import free_ports
from tests.support.processes import Command, wait_for

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_commands_of_the_readme_run_as_printed(tmp_path: Path) -> None:
    """Run all bash blocks in one shell. No mirror answers, so the sample is used."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    script = "\n".join(blocks).replace("8000", str(*free_ports("127.0.0.1", 1)))
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PIPELINE_ROOT": str(tmp_path / "root"),
        "HTTP_PROXY": "http://127.0.0.1:1",
        "HTTPS_PROXY": "http://127.0.0.1:1",
    }
    command = Command("bash", "-euc", f"cd {tmp_path}; {script}", env=env)
    completed = command.run()
    assert completed.returncode == 0, completed.stderr
    assert "Total parameters: 101,770" in completed.stdout
    assert "Total parameters memory: 407,080 bytes" in completed.stdout
    assert list((tmp_path / "scores").glob("part-*.parquet"))
    # One version of `run`, and one of the stages with another seed.
    assert len(list((tmp_path / "root").glob("models/*/*/report.html"))) == 2
    # curl ends the answer without a newline.
    start = completed.stdout.index('{"prediction"')
    answer, _ = json.JSONDecoder().raw_decode(completed.stdout, start)
    assert answer["model_name"] == "mnist-sample"
    assert "no accuracy here is MNIST's" in answer["caveat"]
    (printed,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert {*json.loads(printed), "caveat"} == set(answer)
    wait_for(lambda: command.running() == [])


def test_make_run_is_the_run_that_the_readme_describes() -> None:
    plan = ["make", "--dry-run", "--always-make", "run"]
    printed = subprocess.run(
        plan, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert "-m pipeline run --data.on-unreachable sample --check-serving" in printed
    assert "--constraint infra/constraints.txt" in printed


def test_every_stage_is_named() -> None:
    for stage in STAGES:
        assert f"python -m pipeline {stage.__name__.lower()}" in README
