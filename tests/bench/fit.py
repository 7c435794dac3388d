"""Time one cold run of the recipe `fast` through Ray; tests.bench.train calls it.

    python -m tests.bench.fit ROOT DATASET

It prints the seconds from `fit()` to the first step, from the last step to the result of `fit()`,
and from the first step to the end of the epoch that reaches GOAL on `val`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pipeline.config import Train
from pipeline.recipes import RECIPES
from pipeline.stages.train import train
from pipeline.training import ray_trainer
from pipeline.training.ray_trainer import work
from pipeline.training.run_state import TrainJob

GOAL = 0.9755


def timed_work(config: dict[str, Any]) -> dict[str, Any]:
    """Call `work`; also return when groups of steps began and ended, and when epochs ended."""
    from pipeline.training import loop
    from pipeline.training.recorder import Recorder

    steps, epochs = list[float](), list[float]()
    create_step, end_epoch = loop.create_step, Recorder.end_epoch

    def create_timed_step(*arguments: Any) -> Any:
        step: Any = create_step(*arguments)
        train = step.train

        def timed_train(*arguments: Any) -> Any:
            steps.append(time.time())
            result = train(*arguments)
            steps.append(time.time())
            return result

        step.train = timed_train
        return step

    def timed_end(recorder: Recorder, metrics: dict[str, float]) -> None:
        epochs.append(time.time())
        end_epoch(recorder, metrics)

    loop.create_step = create_timed_step
    Recorder.end_epoch = timed_end  # type: ignore[assignment,method-assign]
    return {**work(config), "first": steps[0], "last": steps[-1], "epochs": epochs}


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
