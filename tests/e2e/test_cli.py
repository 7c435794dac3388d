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
        (("train", "--dataset", "bars/0"), "Make it first: python -m pipeline preprocess"),
        (("run", "--train.epochs", "0"), "error: --train.epochs is 0:"),
        (("evaluate", "--model", "bars"), "error: Model 'bars' is not of the form"),
        (("preprocess", "--data.name", "bars"), "error: --data.name 'bars' is not a data set"),
        (("preprocess", "--data.source", "/nowhere"), "error: /nowhere holds no train-images"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_code_2(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = pipeline(*args, "--root", tmp_path).run()
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_job_address_is_no_cluster_to_join(source: Path, tmp_path: Path) -> None:
    flags = ("--root", tmp_path, "--data.name", "bars", "--data.source", source)
    done = pipeline("preprocess", *flags, RAY_ADDRESS="http://127.0.0.1:8265").run()
    assert done.returncode == 2
    assert "use infra/jobs/submit.sh" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_flag_is_code_2() -> None:
    done = pipeline("run", "--bogus", "1").run()
    assert done.returncode == 2
    assert "Unrecognized options" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_trace_and_is_code_1(artifacts: Artifacts, tmp_path: Path) -> None:
    """A shard that its manifest vouches for and that is no Parquet cannot be a user's doing."""
    root = shutil.copytree(artifacts.root, tmp_path / "root")
    path = root / "datasets" / artifacts.dataset.ref / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = next(e for e in manifest["files"] if e["path"].startswith("test/"))
    (path.parent / entry["path"]).write_bytes(b"garbage")
    entry["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    path.write_text(json.dumps(manifest))
    done = pipeline("show", "--root", root, "--model", artifacts.model.ref).run()
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ArrowInvalid" in done.stderr


def test_the_whole_run_goes_from_images_to_an_answer_over_http(
    source: Path, tmp_path: Path
) -> None:
    flags = ("--root", tmp_path, "--data.name", "bars", "--data.source", source)
    command = pipeline("run", "fast", *flags, "--train.epochs", "30", "--check-serving")
    done = command.run()
    assert done.returncode == 0, done.stderr
    ref = done.stdout.strip()
    assert "accuracy on test" in done.stderr
    assert "was taken for a" in done.stderr
    assert f"models/{ref}/report.html" in done.stderr
    assert f"python -m serving --root {tmp_path} --model bars/production" in done.stderr
    assert "Traceback" not in done.stderr
    alias = json.loads((tmp_path / "models/bars/aliases/production.json").read_text())
    assert f"bars/{alias['version']}" == ref
    assert command.left() == []

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = pipeline("run", "fast", *flags, "--train.epochs", "30").run()
    assert again.stdout == done.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "kind", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_leaves_no_process_and_goes_on_to_the_same_bits(
    artifacts: Artifacts,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: signal.Signals,
) -> None:
    shutil.copytree(Path(artifacts.root, "datasets"), tmp_path / "cut" / "datasets")
    settings = {"epochs": 60, "batch_size": 5, "checkpoint_every": 1}
    flags = [f"--train.{name.replace('_', '-')}={value}" for name, value in settings.items()]
    cut = tmp_path / "cut"
    command = pipeline("train", "fast", "--root", cut, "--dataset", artifacts.dataset.ref, *flags)
    with command.started() as process:
        wait_for(lambda: list(cut.glob("runs/*/checkpoints/*.pt")))
        process.send_signal(kind)
        assert process.wait(timeout=30) == 130
    assert "run the same command again to go on" in capfd.readouterr().err
    wait_for(lambda: command.left() == [], timeout_s=10)
    assert not list(cut.glob("runs/*/manifest.json"))
    assert command.run().returncode == 0

    training = RECIPES["fast"].model_copy(update=settings)
    whole = train(Train(root=artifacts.root, dataset=artifacts.dataset.ref, train=training))
    gone_on = find(Storage(str(cut)), f"runs/{whole.run}", RunManifest)
    assert gone_on
    assert gone_on.checkpoint == whole.checkpoint
    assert [line["epoch"] for line in gone_on.metrics] == list(range(1, 61))
