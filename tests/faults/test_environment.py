"""Environments of containers, services and companies: a command works, or says what it lacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Artifacts
from tests.support.processes import Command, pipeline
from tests.support.sample_data import write_source
from tests.support.servers import serving

NAMELESS = ("unshare", "--user", "--map-user=12345")
"""Run a command as a user without an entry in /etc/passwd."""

needs_unshare = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMELESS, "true"]).returncode != 0,
    reason="user namespaces are not allowed on this machine",
)

DEAD_PROXY = "http://127.0.0.1:9"

PROXIES = {
    name: DEAD_PROXY
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    return ("--data.name", "bars", "--data.source", write_source(tmp_path_factory.mktemp("data")))


@pytest.fixture
def long_folder(tmp_path: Path) -> str:
    """Return a folder whose path is longer than 100 characters."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    return str(folder)


def limited(files: int, command: Command) -> Command:
    """Return the command with a hard limit of open files."""
    script = 'ulimit -n "$0"; exec "$@"'
    return Command("sh", "-c", script, files, *command.args, env=command.env)


def only_line(command: Command) -> str:
    """Return the line that a command prints on stderr if it ends with exit code 2."""
    completed = command.run()
    assert completed.returncode == 2, completed.stderr
    assert completed.stdout == ""
    (line,) = completed.stderr.splitlines()
    return line


@pytest.mark.slow
@needs_unshare
def test_a_nameless_user_with_odd_folders_and_few_files_can_preprocess(
    flags: tuple[object, ...], long_folder: str, tmp_path: Path
) -> None:
    root = tmp_path / "[root] [/x] :cat:"
    command = pipeline(
        "preprocess", "--root", root, *flags, TMPDIR=long_folder, HOME="/proc/nowhere"
    )
    for name in ("USER", "LOGNAME", "USERNAME"):
        command.env.pop(name, None)
    command.args = [*NAMELESS, *command.args]
    completed = limited(256, command).run()
    assert completed.returncode == 0, completed.stderr
    assert f"TMPDIR is {long_folder!r}" in completed.stderr
    assert (root / "datasets" / completed.stdout.strip() / "manifest.json").exists()


@needs_unshare
@pytest.mark.parametrize("command", [pipeline("run"), serving()])
def test_a_nameless_user_without_home_is_told_so(command: Command) -> None:
    command.args = [*NAMELESS, *command.args]
    for name in ("HOME", "USER", "LOGNAME", "USERNAME"):
        command.env.pop(name, None)
    assert "Set HOME to a folder" in only_line(command)


@pytest.mark.parametrize("command", [pipeline("preprocess"), serving()])
def test_a_hard_limit_of_open_files_that_is_too_low_is_told(command: Command) -> None:
    line = only_line(limited(64, command))
    assert line.startswith("error: A process may open 64 files (ulimit -Hn), but ")


@pytest.mark.slow
def test_a_run_behind_a_dead_proxy_asks_loopback_directly(
    flags: tuple[object, ...], long_folder: str, tmp_path: Path
) -> None:
    root = tmp_path / "[root] [/x] :cat:"
    arguments = ("fast", "--root", root, *flags, "--train.epochs", 30, "--check-serving")
    completed = pipeline("run", *arguments, TMPDIR=long_folder, **PROXIES).run()
    assert completed.returncode == 0, completed.stderr
    assert "was predicted as a" in completed.stderr
    assert f"report  {root}/models/" in completed.stderr
    assert json.loads((root / "models/bars/aliases/production.json").read_text())


def test_a_download_that_no_home_can_keep_names_the_flag(tmp_path: Path) -> None:
    command = pipeline("preprocess", "--root", tmp_path, HOME="/proc/nowhere")
    assert "--data.cache" in only_line(command)


GPU_SCRIPT = """
import sys
import ray
from pipeline.config import Train
from pipeline.errors import ResourcesMissing
from pipeline.recipes import RECIPES
from pipeline.stages.train import train

def run(device, num_workers=1):
    settings = {"epochs": 1, "device": device, "num_workers": num_workers}
    recipe = RECIPES["fast"].model_copy(update=settings)
    train_settings = {"root": sys.argv[1], "dataset": sys.argv[2], "force": True, "wait": 0}
    return train(Train(train=recipe, **train_settings))

ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
for num_workers in (1, 2):
    try:
        run("cuda", num_workers)
    except ResourcesMissing as error:
        print(error)
for num_workers in (1, 2):
    print(run("auto", num_workers).device)
"""

UNUSABLE_GPU = {
    # Libraries see a GPU that no machine has, and Ray does not change that.
    "CUDA_VISIBLE_DEVICES": "99",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_AUTH_TOKEN": "0" * 64,
}


@pytest.mark.slow
def test_gpus_that_torch_cannot_use_are_left_with_a_warning(
    flags: tuple[object, ...], tmp_path: Path
) -> None:
    dataset = pipeline("preprocess", "--root", tmp_path, *flags).run().stdout.strip()
    command = Command(sys.executable, "-c", GPU_SCRIPT, tmp_path, dataset, env=UNUSABLE_GPU)
    completed = command.run()
    assert completed.returncode == 0, completed.stderr
    unusable, too_few, *devices = completed.stdout.splitlines()
    assert unusable.startswith("--train.device is 'cuda', but torch cannot use the GPUs of ")
    assert too_few.startswith("2 GPUs were asked for, but the cluster has 1, also after 8 s.")
    assert devices == ["cpu", "cpu"]
    assert "; training on the CPU" in completed.stderr
    assert "2 workers need a GPU each, but the cluster has 1; training on CPUs" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
def test_gpus_that_onnxruntime_cannot_use_are_an_error(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    arguments = ("--root", artifacts.root, "--model", artifacts.model.ref, "--device", "cuda")
    files = ("--input", f"{artifacts.dataset.ref}/test", "--output", tmp_path / "scores")
    environment = {**UNUSABLE_GPU, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 1}'}
    completed = pipeline("score", *arguments, *files, **environment).run()
    assert completed.returncode == 2, completed.stderr
    # Ray may write a line of its own about its actors before.
    assert completed.stderr.splitlines()[-1].startswith("error: CUDAExecutionProvider did not load")
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
def test_a_model_no_better_than_the_commonest_class_is_not_promoted(
    flags: tuple[object, ...], tmp_path: Path
) -> None:
    weak = ("--train.epochs", 1, "--train.learning-rate", 1e-9)
    completed = pipeline("run", "fast", "--root", tmp_path, *flags, *weak).run()
    assert completed.returncode == 0, completed.stderr
    assert "WARNING: not promoted to production: the accuracy on val is" in completed.stderr
    assert f"python -m serving --root {tmp_path} --model {completed.stdout}" in completed.stderr
    assert not (tmp_path / "models/bars/aliases").exists()
