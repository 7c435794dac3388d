"""Nodes whose environment has Ray alone: a job brings the project as a wheel, with its pins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testbed.cluster import REPOSITORY, Cluster
from infra.testbed.namespaces import Switch
from tests.support.sample_data import write_source

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY_ALONE = REPOSITORY / ".venv-others/ray/bin"

DISK = "6G"
"""A node installs an environment of 2 GiB."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a wheel of the project, and below it those of all that it needs."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = (sys.executable, "-m", "pip")
    constraints = REPOSITORY / "infra/constraints.txt"
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, REPOSITORY], check=True)
    needs = ("-c", constraints, "-d", folder / "needed", f"{REPOSITORY}[all]")
    subprocess.run([*pip, "download", "-q", *needs], check=True)
    return folder


@pytest.fixture
def testbed(wheels: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Start two nodes that install from the folder, because they reach no package index."""
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels / "needed")}
    with Switch() as switch:
        cluster = Cluster(switch, tmp_path, 1, programs=RAY_ALONE, node_env=index)
        for _ in range(2):
            node = switch.add_node([REPOSITORY / ".venv-others", wheels, tmp_path])
            node.run("mount", "-o", f"remount,size={DISK}", "/tmp")
            cluster.start_ray(node)
        yield cluster


def test_a_job_brings_the_project_and_ray_keeps_it_for_the_next(
    testbed: Cluster, wheels: Path, tmp_path: Path
) -> None:
    source, root = write_source(tmp_path / "source"), tmp_path / "root"
    (wheel,) = wheels.glob("*.whl")
    env = {
        **testbed.env,
        "RAY_ADDRESS": f"http://{testbed.head.address}:8265",
        "PIPELINE_ROOT": str(root),
    }
    submit = (sys.executable, "-m", "infra.jobs.submit", "--wheel", wheel)
    flags = ("--data.name", "bars", "--data.source", source, "--train.num-workers", 2)
    for epochs in (2, 3):
        command = (*submit, "run", "fast", *flags, "--train.epochs", epochs)
        with testbed.switch.popen(
            *command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
    for node in testbed.switch.nodes:
        listed = node.run("sh", "-c", "ls /tmp/ray/session_latest/runtime_resources/pip")
        assert len([name for name in listed.stdout.split() if "." not in name]) == 1
