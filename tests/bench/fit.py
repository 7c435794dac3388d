"""Time one cold run of the recipe `fast` through Ray; tests.bench.train calls it.

    python -m tests.bench.fit ROOT DATASET

It prints the seconds from `fit()` to the first step, from the last step to the result of `fit()`,
and from the first step to the end of the epoch that reaches GOAL on `val`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

from pipeline.config import Train
from pipeline.recipes import RECIPES
from pipeline.stages.train import train
from pipeline.training import ray_trainer
from pipeline.training.ray_trainer import work
from pipeline.training.run_state import TrainJob

GOAL = 0.9755


def timed_work(config: dict[str, Any]) -> dict[str, Any]:
    """Call `work`; also return when groups of steps began and ended, when epochs ended, and how
    often a CUDA graph ran."""
    loop: Any = import_module("pipeline.training.loop")
    recorder: Any = import_module("pipeline.training.recorder").Recorder
    created, steps, epochs = list[Any](), list[float](), list[float]()
    create_step, end_epoch = loop.create_step, recorder.end_epoch

    def create_timed_step(*arguments: Any) -> Any:
        step: Any = create_step(*arguments)
        created.append(step)
        train = step.train

        def timed_train(*arguments: Any) -> Any:
            steps.append(time.time())
            result = train(*arguments)
            steps.append(time.time())
            return result

        step.train = timed_train
        return step

    def timed_end(*arguments: Any) -> None:
        epochs.append(time.time())
        end_epoch(*arguments)

    loop.create_step, recorder.end_epoch = create_timed_step, timed_end
    try:
        result = work(config)
    finally:
        loop.create_step, recorder.end_epoch = create_step, end_epoch
    times = {"first": steps[0], "last": steps[-1], "epochs": epochs}
    return {**result, **times, "replays": getattr(created[0], "replays", 0)}


def main(root: str, ref: str) -> None:
    times = dict[str, Any]()
    run_workers = ray_trainer.run_workers

    def timed_run(job: TrainJob, num_workers: int) -> dict[str, Any]:
        times["fit"] = time.time()
        times.update(run_workers(job, num_workers))
        times["end"] = time.time()
        return times

    ray_trainer.work, ray_trainer.run_workers = timed_work, timed_run
    train(Train(root=root, dataset=ref, train=RECIPES["fast"], force=True))
    reached = [
        end
        for end, metrics in zip(times["epochs"], times["metrics"], strict=True)
        if metrics["val_accuracy"] >= GOAL
    ]
    report = {
        "start": times["first"] - times["fit"],
        "end": times["end"] - times["last"],
        "goal": min(reached, default=float("inf")) - times["first"],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
