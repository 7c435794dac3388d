from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.artifacts.commit import find
from pipeline.artifacts.manifests import RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Train
from pipeline.recipes import RECIPES
from pipeline.stages.train import train
from tests.conftest import Artifacts
from tests.support.processes import pipeline, wait_for


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--dataset", "bars/0"), "Build it first: python -m pipeline preprocess"),
        (("run", "--train.epochs", "0"), "error: --train.epochs is 0:"),
        (("evaluate", "--model", "bars"), "error: Model 'bars' is not of the form"),
        (
            ("preprocess", "--data.name", "bars"),
            "error: --data.name 'bars' is not a known data set",
        ),
        (("preprocess", "--data.source", "/nowhere"), "error: --data.source '/nowhere' "),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    completed = pipeline(*args, "--root", tmp_path).run()
    assert completed.returncode == 2
    assert message in completed.stderr
    assert len(completed.stderr.splitlines()) == 1
    assert completed.stdout == ""


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:9", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_a_user_error(
    address: str, source: Path, tmp_path: Path
) -> None:
    flags = ("--root", tmp_path, "--data.name", "bars", "--data.source", source)
    completed = pipeline("preprocess", *flags, RAY_ADDRESS=address).run()
    assert completed.returncode == 2
    assert "use python -m infra.jobs.submit" in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


def test_an_unknown_flag_is_exit_code_2() -> None:
    completed = pipeline("run", "--bogus", "1").run()
    assert completed.returncode == 2
    assert "Unrecognized options" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_bug_prints_its_traceback_and_is_exit_code_1(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    """Damage a shard and its digest alike: a shard that passes its digest but cannot be read."""
    root = shutil.copytree(artifacts.root, tmp_path / "root")
    path = root / "datasets" / artifacts.dataset.ref / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = next(e for e in manifest["files"] if e["path"].startswith("test/"))
    (path.parent / entry["path"]).write_bytes(b"garbage")
    entry["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    path.write_text(json.dumps(manifest))
    completed = pipeline("show", "--root", root, "--model", artifacts.model.ref).run()
    assert completed.returncode == 1
    assert "Traceback" in completed.stderr
    assert "ArrowInvalid" in completed.stderr


def test_a_run_goes_from_images_to_an_answer_over_http(source: Path, tmp_path: Path) -> None:
    """Run every stage with a network that is not the default; tests/e2e/test_readme.py has that."""
    data = ("--root", tmp_path, "--data.name", "bars", "--data.source", source)
    flags = (*data, "--train.model", "cnn", "--train.epochs", "30")
    command = pipeline("run", "fast", *flags, "--check-serving")
    completed = command.run()
    assert completed.returncode == 0, completed.stderr
    ref = completed.stdout.strip()
    assert "accuracy on test" in completed.stderr
    assert "was predicted as a" in completed.stderr
    assert f"models/{ref}/report.html" in completed.stderr
    assert f"python -m serving --root {tmp_path} --model bars/production" in completed.stderr
    assert "Traceback" not in completed.stderr
    alias = json.loads((tmp_path / "models/bars/aliases/production.json").read_text())
    assert f"bars/{alias['version']}" == ref
    assert command.running() == []

    modified = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    repeated = pipeline("run", "fast", *flags).run()
    assert repeated.stdout == completed.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == modified


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_resumes_bit_identically(
    artifacts: Artifacts,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: signal.Signals,
) -> None:
    shutil.copytree(Path(artifacts.root, "datasets"), tmp_path / "interrupted" / "datasets")
    settings = {"epochs": 60, "batch_size": 5, "checkpoint_steps": 1}
    flags = [f"--train.{name.replace('_', '-')}={value}" for name, value in settings.items()]
    root = tmp_path / "interrupted"
    command = pipeline("train", "fast", "--root", root, "--dataset", artifacts.dataset.ref, *flags)
    with command.started() as process:
        wait_for(lambda: list(root.glob("runs/*/checkpoints/*/state.pt")))
        process.send_signal(kind)
        assert process.wait(timeout=30) == 130
    assert "run the same command again to continue" in capfd.readouterr().err
    wait_for(lambda: command.running() == [], timeout_s=10)
    assert not list(root.glob("runs/*/manifest.json"))
    assert command.run().returncode == 0

    training = RECIPES["fast"].model_copy(update=settings)
    uninterrupted = train(Train(root=artifacts.root, dataset=artifacts.dataset.ref, train=training))
    resumed = find(Storage(str(root)), f"runs/{uninterrupted.run}", RunManifest)
    assert resumed
    assert resumed.checkpoint == uninterrupted.checkpoint
    assert [line["epoch"] for line in resumed.metrics] == list(range(1, 61))
