"""Check and measure everything that needs a GPU, in at most 6 minutes.

    MNIST_DIR=... python3 -m tests.gpu.check

It needs no network and no installation of the project. The steps that are worth most come first,
and each prints a line of JSON when it ends, so that a check that is cut off still counts.
`--device cpu` tries the script itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

LIMIT_S = 350
"""Time for all steps."""
STEP_LIMIT_S = 100
GOAL = 0.9755


def make_dataset(root: str) -> str:
    """Write the dataset of MNIST's files under the root, without Ray; return its name."""
    from pipeline.artifacts.storage import Storage
    from tests.gpu.mnist import write_mnist

    return write_mnist(Storage(root), Path(os.environ["MNIST_DIR"])).ref


def train(root: str, device: str, recipe: str, **update: Any) -> dict[str, Any]:
    """Train a recipe in this process; return its result, and the times of its steps and epochs."""
    from pipeline.artifacts.commit import load
    from pipeline.artifacts.manifests import DatasetManifest
    from pipeline.artifacts.storage import Storage
    from pipeline.recipes import RECIPES
    from pipeline.training.run_state import TrainJob
    from tests.bench.fit import timed_work
    from tests.support.ranks import on_one_rank

    storage = Storage(root)
    (ref,) = (f"mnist/{path.name}" for path in Path(root, "datasets/mnist").iterdir())
    dataset = load(storage, f"datasets/{ref}", DatasetManifest)
    training = RECIPES[recipe].model_copy(update={"device": device, **update})
    with tempfile.TemporaryDirectory(dir=root) as folder:
        job = TrainJob(storage, dataset, training, Path(folder).name, device)
        result: dict[str, Any] = on_one_rank(timed_work, {"job": job}, device=device)
    return result


def environment(root: str, device: str) -> dict[str, object]:
    import onnxruntime
    import ray
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "ray": ray.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


def tutorial(root: str, device: str) -> dict[str, object]:
    """Measure 100 epochs of the recipe `tutorial`, from the first step."""
    result = train(root, device, "tutorial", **({"epochs": 3} if device == "cpu" else {}))
    return {
        "seed_100_epochs_s": result["epochs"][-1] - result["first"],
        "val_accuracy": result["metrics"][-1]["val_accuracy"],
        "replays": result["replays"],
    }


def fast(root: str, device: str) -> dict[str, object]:
    """Measure the time of the recipe `fast` to the goal, from the first step."""
    result = train(root, device, "fast")
    reached = [
        end
        for end, line in zip(result["epochs"], result["metrics"], strict=True)
        if line["val_accuracy"] >= GOAL
    ]
    return {
        "time_to_9755_s": min(reached, default=float("inf")) - result["first"],
        "val_accuracy": result["metrics"][-1]["val_accuracy"],
        "replays": result["replays"],
    }


def tests(root: str, device: str) -> dict[str, object]:
    """Run the tests that need a GPU; return the numbers of those that passed and failed."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu")
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    said = lines[-1] if lines else done.stderr[-300:]
    return {"tests": said, "failed": failed[:20], "ok": done.returncode == 0}


def step_rates(root: str, device: str) -> dict[str, object]:
    """Measure steps per second of the recipe `tutorial`, ours and the peers', in turn."""
    from tests.bench.peers import BATCH
    from tests.gpu import peers

    arrays = peers.load(root)
    passes: dict[str, Callable[[], object]] = {
        "eager": peers.eager(arrays, device),
        "compile": peers.compiled(arrays, device),
    }
    scan = peers.jax_scan(arrays) if device == "cuda" else None
    if scan:
        passes["jax_scan"] = scan
    steps = peers.steps(arrays)
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *passes)}
    for run in passes.values():
        run()
    for _ in range(3):
        lines = train(root, device, "tutorial", epochs=4)["metrics"]
        rates["ours"].append(max(line["images_per_s"] for line in lines[2:]) / BATCH)
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            rates[name].append(steps / (time.perf_counter() - started))
    ours = median(rates["ours"])
    figures: dict[str, object] = {f"step_vs_{name}": ours / median(rates[name]) for name in passes}
    return {**figures, **{f"{name}_steps_s": median(rate) for name, rate in rates.items()}}


def scores(root: str, device: str) -> dict[str, object]:
    """Measure images per second of a predictor on the device, and of a bare loop of onnxruntime."""
    from tests.gpu import peers

    return peers.score_rates(root, device)


def large(root: str, device: str) -> dict[str, object]:
    """Measure images per second of the recipe `large`, in full precision and in bfloat16."""
    figures = dict[str, object]()
    for precision in ("fp32", "tf32", "bf16") if device == "cuda" else ("fp32",):
        lines = train(root, device, "large", epochs=3, precision=precision)["metrics"]
        figures[f"large_examples_s_{precision}"] = lines[-1]["images_per_s"]
    return {"large_examples_s": figures["large_examples_s_fp32"], **figures}


def pipeline(root: str, device: str) -> dict[str, object]:
    """Run the whole pipeline on the device, through Ray."""
    command = (sys.executable, "-m", "pipeline", "run", "fast", "--train.device", device)
    data = ("--data.source", os.environ["MNIST_DIR"], "--root", f"{root}/run")
    started = time.perf_counter()
    done = subprocess.run([*command, *data], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    accuracy = [line for line in done.stdout.splitlines() if "accuracy on test" in line]
    said = accuracy[-1:] or done.stderr[-500:]
    return {"ok": done.returncode == 0, "pipeline_s": seconds, "said": said}


STEPS: tuple[Callable[[str, str], dict[str, object]], ...] = (
    environment,
    tutorial,
    fast,
    tests,
    step_rates,
    scores,
    large,
    pipeline,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--step", help="run only this step")
    parser.add_argument("--root")
    options = parser.parse_args()
    if options.step:
        step = next(step for step in STEPS if step.__name__ == options.step)
        print(json.dumps(step(options.root, options.device)), flush=True)
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU on this machine: there is nothing to check.", file=sys.stderr)
        return 2
    if "MNIST_DIR" not in os.environ:
        print("MNIST_DIR is not set: set it to a folder of MNIST's files.", file=sys.stderr)
        return 2
    started, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as root:
        make_dataset(root)
        for step in STEPS:
            left = LIMIT_S - (time.monotonic() - started)
            failed += not run_step(partial(step_command, step.__name__, root, options.device), left)
    return 1 if failed else 0


def step_command(name: str, root: str, device: str) -> list[str]:
    command = [sys.executable, "-m", "tests.gpu.check", "--step", name]
    return [*command, "--root", root, "--device", device]


def run_step(command: Callable[[], list[str]], left_s: float) -> bool:
    """Run a step in a process of its own, print its line, and return whether it succeeded."""
    words = command()
    name, device = words[words.index("--step") + 1], words[-1]
    line: dict[str, object] = {"step": name, "device": device}
    started = time.monotonic()
    pipe = subprocess.PIPE
    # A session of its own: all that the step started ends with it.
    with subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, printed = process.communicate(timeout=max(1, min(STEP_LIMIT_S, left_s)))
            if process.returncode == 0:
                line |= json.loads(out.splitlines()[-1])
            else:
                line |= {"ok": False, "error": printed[-1500:]}
        except subprocess.TimeoutExpired:
            line |= {"ok": False, "error": "no time was left"}
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    line = {"ok": True, **line, "took_s": time.monotonic() - started}
    print(json.dumps(line), flush=True)
    return bool(line["ok"])


if __name__ == "__main__":
    sys.exit(main())
