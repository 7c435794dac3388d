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

from pipeline.__main__ import STAGES
from serving.ingress.ports import free_ports
from tests.support.processes import Command, wait_for

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_run_as_printed(tmp_path: Path) -> None:
    """No mirror answers, as the proxy is none, so they fall back on the sample, as told."""
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
    done = command.run()
    assert done.returncode == 0, done.stderr
    assert "Total parameters: 101,770" in done.stdout
    assert "Total parameters memory: 407,080 bytes" in done.stdout
    assert list((tmp_path / "scores").glob("part-*.parquet"))
    assert list((tmp_path / "root").glob("models/*/*/report.html"))
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["model_name"] == "mnist-sample"
    assert "no accuracy here is MNIST's" in answer["caveat"]
    wait_for(lambda: command.left() == [])


def test_make_run_is_the_run_that_the_readme_tells_of() -> None:
    plan = ["make", "--dry-run", "--always-make", "run"]
    done = subprocess.run(plan, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "-m pipeline run --data.on-unreachable sample --check-serving" in done.stdout
    assert "--constraint infra/constraints.txt" in done.stdout


def test_every_stage_and_every_file_is_named() -> None:
    for stage in STAGES:
        assert f"pipeline {stage.__name__.lower()}" in README
    tree = README[README.index("## The tree") :]
    for folder in ("pipeline", "serving"):
        for file in (REPOSITORY / folder).glob("*.py"):
            assert file.name == "__init__.py" or f"  {file.name} " in tree, file
