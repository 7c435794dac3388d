"""Faults during a training run. After each, the same command ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipeline.artifacts.commit import find
from pipeline.artifacts.manifests import RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Train
from pipeline.recipes import RECIPES
from pipeline.stages.train import train
from pipeline.training.loop import train_loop
from pipeline.training.run_state import TrainJob
from tests.conftest import TRAINING, Artifacts
from tests.pipeline.training.test_loop import COSTS
from tests.support.processes import Command, pipeline, wait_for
from tests.support.ranks import on_ranks

LONG: dict[str, Any] = {"epochs": 50, "batch_size": 5, "checkpoint_steps": 1, "deform": 0.1}
"""Settings of a run long enough to be killed in mid-epoch, after its first checkpoint."""


@pytest.fixture
def root(artifacts: Artifacts, tmp_path: Path) -> Path:
    """Return a storage root that holds only the dataset of the session."""
    shutil.copytree(Path(artifacts.root, "datasets"), tmp_path / "datasets")
    return tmp_path


def command(root: Path, artifacts: Artifacts, settings: dict[str, Any], **env: str) -> Command:
    flags = [f"--train.{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return pipeline(
        "train", "fast", "--root", root, "--dataset", artifacts.dataset.ref, *flags, **env
    )


def train_undisturbed(artifacts: Artifacts, settings: dict[str, Any]) -> RunManifest:
    training = RECIPES["fast"].model_copy(update=settings)
    return train(Train(root=artifacts.root, dataset=artifacts.dataset.ref, train=training))


def assert_same_run(root: Path, expected: RunManifest, kept: list[bytes]) -> None:
    """Check the same checkpoint (weights, optimizer, schedule) and the same lines of metrics.

    `kept` are the lines of metrics.jsonl at the time of the fault. All but the last must still be
    there: those epochs were not trained again.
    """
    assert len(kept) > 1
    assert lines(root)[: len(kept) - 1] == kept[:-1]
    resumed = find(Storage(str(root)), f"runs/{expected.run}", RunManifest)
    assert resumed
    assert resumed.checkpoint == expected.checkpoint
    assert resumed.file(resumed.checkpoint) == expected.file(expected.checkpoint)
    timeless = [
        [{k: v for k, v in line.items() if k not in COSTS} for line in run.metrics]
        for run in (resumed, expected)
    ]
    assert timeless[0] == timeless[1]


def lines(root: Path) -> list[bytes]:
    """Return the lines of metrics.jsonl; their times tell whether an epoch was trained again."""
    logs = (path.read_bytes() for path in root.glob("runs/*/metrics.jsonl"))
    return [line for log in logs for line in log.splitlines()]


def workers(command: Command, name: str = "RayTrainWorker") -> list[int]:
    return [int(line.split()[0]) for line in command.running() if name in line]


def test_a_run_survives_sigkill_of_a_worker_in_mid_epoch(artifacts: Artifacts, root: Path) -> None:
    # The seed gives it a name of its own, because the number of workers does not.
    settings = {**LONG, "num_workers": 2, "seed": 1}
    run = command(root, artifacts, settings)
    with run.started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        kept = lines(root)
        os.kill(workers(run)[-1], signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    assert_same_run(root, train_undisturbed(artifacts, settings), kept)


@pytest.mark.slow
def test_a_run_survives_sigkill_of_its_controller(artifacts: Artifacts, root: Path) -> None:
    settings = {**LONG, "seed": 2}
    run = command(root, artifacts, settings)
    with run.started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        kept = lines(root)
        (controller,) = workers(run, "FasterController")
        os.kill(controller, signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    assert_same_run(root, train_undisturbed(artifacts, settings), kept)


@pytest.mark.slow
def test_a_run_resumes_after_sigkill_of_the_driver_and_a_truncated_ray_index(
    artifacts: Artifacts, root: Path
) -> None:
    run = command(root, artifacts, LONG)
    with run.started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        kept = lines(root)
        process.kill()
    # Ray's agents may live for another minute, but they do not write to the run.
    wait_for(lambda: not workers(run))
    assert not list(root.glob("runs/*/manifest.json"))
    (folder,) = root.glob("runs/*")
    (folder / "checkpoint_manager_snapshot.json").write_bytes(b'{"checkpo')
    assert run.run().returncode == 0
    assert_same_run(root, train_undisturbed(artifacts, LONG), kept)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


class Nodes:
    """A cluster of nodes of one CPU each, beside a head without one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        token = os.environ["RAY_AUTH_TOKEN"]
        self.env = {
            "RAY_ADDRESS": cluster.address,
            "RAY_AUTH_TOKEN": token,
            "RAY_AUTH_MODE": "token",
        }

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1)

    def remove(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def announce_preemption(self, node: Any, *, in_s: int) -> None:
        """Tell Ray that a node will be taken away, as a cloud's autoscaler does."""
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", *reason),
                *("--node-id", node.node_id, "--deadline-remaining-seconds", str(in_s)),
                *("--address", self.cluster.address),
            ],
            env={**os.environ, **self.env},
            check=True,
        )


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_node(artifacts: Artifacts, root: Path, nodes: Nodes) -> None:
    """Remove the worker's node without notice; another node replaces it."""
    lost = nodes.add()
    settings = {**LONG, "device": "cpu"}
    with command(root, artifacts, settings, **nodes.env).started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        kept = lines(root)
        nodes.add()
        nodes.remove(lost)
        assert process.wait(timeout=180) == 0
    assert_same_run(root, train_undisturbed(artifacts, settings), kept)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_if_a_node_is_not_replaced(
    artifacts: Artifacts, root: Path, nodes: Nodes
) -> None:
    lost, _ = nodes.add(), nodes.add()
    settings = {**LONG, "device": "cpu", "num_workers": 2, "min_workers": 1, "seed": 2}
    with command(root, artifacts, settings, **nodes.env).started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        nodes.remove(lost)
        assert process.wait(timeout=180) == 0
    (run,) = root.glob("runs/*/manifest.json")
    history = json.loads(run.read_text())["history"]
    assert [entry["num_workers"] for entry in history] == [2, 1]


@pytest.mark.slow
def test_a_run_whose_node_is_not_replaced_ends_with_one_line(
    artifacts: Artifacts, root: Path, nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = nodes.add()
    settings = {**LONG, "device": "cpu", "seed": 3}
    with command(root, artifacts, settings, **nodes.env).started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        nodes.remove(lost)
        assert process.wait(timeout=60) == 2
    printed = capfd.readouterr().err
    assert "error: Workers were lost, and after 20 s the cluster has room for 0 of 1" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_notice_of_preemption_makes_a_checkpoint(
    artifacts: Artifacts, root: Path, nodes: Nodes
) -> None:
    lost = nodes.add()
    settings = {**LONG, "epochs": 200, "device": "cpu", "checkpoint_seconds": 1000}
    del settings["checkpoint_steps"]
    with command(root, artifacts, settings, **nodes.env).started() as process:
        wait_for(lambda: len(lines(root)) > 2)
        assert not list(root.glob("runs/*/checkpoints.json"))
        nodes.announce_preemption(lost, in_s=60)
        wait_for(lambda: bool(list(root.glob("runs/*/checkpoints.json"))))
        kept = lines(root)
        nodes.add()
        nodes.remove(lost)
        assert process.wait(timeout=180) == 0
    assert_same_run(root, train_undisturbed(artifacts, settings), kept[:-50])


DEADLY = """
import os, signal
import torch.distributed as dist
from pipeline.models.mlp import Mlp

def build(image, training):
    if dist.is_initialized():
        os.kill(os.getpid(), signal.SIGKILL)
    return Mlp(image, training.hidden_sizes)
"""


@pytest.mark.slow
def test_workers_that_die_too_often_are_one_line(artifacts: Artifacts, root: Path) -> None:
    (root / "deadly.py").write_text(DEADLY)
    path = f"{root}:{os.getcwd()}"
    done = command(root, artifacts, {"model": "deadly:build"}, PYTHONPATH=path).run()
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Workers failed 4 times since the last checkpoint: they were killed" in done.stderr


DISK_FULL = """
set -e
mount -t tmpfs -o size=8m tmpfs "$ROOT"
cp -r "$DATASETS" "$ROOT/datasets"
head -c 5500000 /dev/zero > "$ROOT/filler"
"$@" && exit 9
test $? = 2
test -z "$(find "$ROOT/runs" -name manifest.json)"
test -n "$(find "$ROOT/runs" -name '*.pt')"
cp "$ROOT"/runs/*/metrics.jsonl "$RESULT/kept"
rm "$ROOT/filler"
"$@"
cp -r "$ROOT/runs" "$RESULT"
"""
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode != 0,
    reason="mounting a tmpfs in a user namespace is not allowed on this machine",
)
@pytest.mark.slow
def test_a_run_resumes_after_a_full_disk_at_a_checkpoint(
    artifacts: Artifacts, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk, result = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("result")
    # A checkpoint is 1.2 MB: two fit, and a third does not.
    settings = {"hidden_sizes": 800, "epochs": 6, "checkpoint_steps": 2}
    run = command(disk, artifacts, settings)
    env = {"ROOT": str(disk), "DATASETS": str(root / "datasets"), "RESULT": str(result)}
    completed = Command(*UNSHARE, "sh", "-c", DISK_FULL, "sh", *run.args, env=env).run()
    assert completed.returncode == 0, completed.stderr
    assert "No space left on device" in completed.stderr
    assert "bytes are free there. Free some space" in completed.stderr
    assert "Traceback" not in completed.stderr
    expected = train_undisturbed(artifacts, {**settings, "hidden_sizes": (800,)})
    assert_same_run(result, expected, (result / "kept").read_bytes().splitlines())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty, Path.unlink])
@pytest.mark.parametrize("num_intact", [1, 0])
def test_a_run_resumes_from_the_newest_intact_checkpoint(
    artifacts: Artifacts, root: Path, damage: Any, num_intact: int
) -> None:
    """Damage the newest checkpoint, or both: then training starts from scratch."""
    folder = copy_uncommitted_run(root, artifacts)
    for path in sorted(folder.glob("checkpoints/*/state.pt"))[num_intact:]:
        damage(path)
    assert epochs_kept(root, folder, artifacts) == (3 if num_intact else 0)


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
@pytest.mark.parametrize(("name", "kept"), [("checkpoints.json", 0), ("metrics.jsonl", None)])
def test_a_run_resumes_with_a_damaged_index_or_log(
    artifacts: Artifacts, root: Path, name: str, kept: int | None, damage: Any
) -> None:
    folder = copy_uncommitted_run(root, artifacts)
    damage(folder / name)
    if kept is None:
        # A log that lost only its last line still matches the checkpoint before it.
        kept = 3 if damage is truncate else 0
    assert epochs_kept(root, folder, artifacts) == kept


def copy_uncommitted_run(root: Path, artifacts: Artifacts) -> Path:
    """Copy the session's run without its manifest, as before its commit; it has two checkpoints."""
    folder = root / "runs" / artifacts.run.run
    shutil.copytree(Path(artifacts.root, "runs", artifacts.run.run), folder)
    (folder / "manifest.json").unlink()
    return folder


def epochs_kept(root: Path, folder: Path, artifacts: Artifacts) -> int:
    """Resume the run in a worker without Ray, to the same bits; return how many epochs it kept."""
    job = TrainJob(Storage(str(root)), artifacts.dataset, TRAINING, f"runs/{folder.name}", "cpu")
    (result,) = on_ranks(1, train_loop, {"job": job})
    assert [line["epoch"] for line in result["metrics"]] == [1, 2, 3, 4]
    sha256 = artifacts.run.file(artifacts.run.checkpoint).sha256
    assert result["checkpoint"]["sha256"] == sha256
    after = [json.loads(line) for line in lines(root)]
    return sum(old == new for old, new in zip(artifacts.run.metrics, after, strict=True))
