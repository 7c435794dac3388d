"""The command `run`: all stages in order, then one prediction over HTTP and a summary.

    python -m pipeline run fast

A stage whose artifact already exists is skipped.
"""

from __future__ import annotations

import importlib
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.table import Table

from pipeline.artifacts import registry
from pipeline.artifacts.manifests import EvaluationManifest, ModelManifest
from pipeline.artifacts.storage import Storage, redact
from pipeline.cluster import connection
from pipeline.config import Data, Evaluate, Export, Preprocess, Run, Score, Train
from pipeline.console import console, warn
from pipeline.stages.figures import measured
from pipeline.stages.smoke_test import Answer, ask_server

ALIAS = "production"


@measured
def run(settings: Run) -> str:
    """Run every stage, promote the model version, and return its name."""
    # Importing torch and the other libraries takes 4 s. A thread imports the stages while Ray
    # starts, so this function imports each stage only when it runs it.
    threading.Thread(target=_import_stages, daemon=True).start()
    storage = Storage(settings.root)
    common = settings.model_dump(exclude={"data", "train", "check_serving", "wait"})
    on_ray = {**common, "wait": settings.wait}
    times: dict[str, float] = {}
    with connection.shared():
        with _timed("preprocess", times):
            from pipeline.stages.preprocess import preprocess

            dataset = preprocess(Preprocess(data=settings.data, **on_ray))
        with _timed("train", times):
            from pipeline.stages.train import train

            trained = train(Train(dataset=dataset.ref, train=settings.train, **on_ray))
        with _timed("export", times):
            from pipeline.stages.export import export

            model = export(Export(run=trained.run, **common))
        with _timed("evaluate", times):
            from pipeline.stages.evaluate import evaluate

            evaluation = evaluate(Evaluate(model=model.ref, **common))
        with _timed("score", times):
            from pipeline.stages.score import score

            scored = (f"{dataset.ref}/test",)
            output = storage.uri(f"scores/{model.ref}")
            score(Score(model=model.ref, input=scored, output=output, **on_ray))
    answer = None
    if settings.check_serving:
        with _timed("one prediction over HTTP", times):
            answer = ask_server(storage, model, dataset)
    served = model.ref
    if _has_learned(evaluation):
        registry.promote(storage, model.ref, ALIAS)
        served = f"{model.name}/{ALIAS}"
    _summarize(settings, model, evaluation, times, answer, served)
    return model.ref


def _has_learned(evaluation: EvaluationManifest) -> bool:
    """Return whether the model beats the answer that is always the commonest class; warn if not."""
    metrics = evaluation.metrics["val"]
    commonest = max(metrics["support"]) / metrics["count"]
    if metrics["accuracy"] > commonest:
        return True
    warn(
        f"not promoted to {ALIAS}: the accuracy on val is {metrics['accuracy']:.4f}, and always "
        f"answering the commonest class gets {commonest:.4f}. Check the labels, or train longer."
    )
    return False


def _import_stages() -> None:
    for stage in ("preprocess", "train", "export", "evaluate", "score"):
        importlib.import_module(f"pipeline.stages.{stage}")


@contextmanager
def _timed(stage: str, times: dict[str, float]) -> Iterator[None]:
    console.print(stage, style="bold")
    started = time.perf_counter()
    yield
    times[stage] = time.perf_counter() - started


def _summarize(
    settings: Run,
    model: ModelManifest,
    evaluation: EvaluationManifest,
    times: dict[str, float],
    answer: Answer | None,
    served: str,
) -> None:
    table = Table(title=f"{model.ref}, run {model.run}", show_header=False)
    for split, metrics in evaluation.metrics.items():
        errors = f"{metrics['errors']} errors of {metrics['count']:,}"
        table.add_row(f"accuracy on {split}", f"{metrics['accuracy']:.4f}  ({errors})")
    for stage, seconds in times.items():
        table.add_row(f"time of {stage}", f"{seconds:.1f} s")
    if answer:
        table.add_row("over HTTP", f"a {answer.label} was predicted as a {answer.prediction}")
    console.print(table)
    storage = Storage(settings.root)
    folder = storage.display(registry.model_folder(model.name, model.version))
    console.print(
        f"model   {folder}/{model.onnx.path}\n"
        f"report  {folder}/{evaluation.report.path}\n"
        f"scores  {storage.display(f'scores/{model.ref}')}\n"
    )
    if model.caveat:
        warn(model.caveat)
    root = f"--root {shlex.quote(_without_keys(storage.root))}"
    flags = "".join(f" {shlex.quote(word)}" for word in data_flags(settings.data))
    console.print(
        "Next steps\n"
        f"  serve it      python -m serving {root} --model {served}\n"
        f"  show it       python -m pipeline show {root} --model {served}\n"
        f"  the tutorial  python -m pipeline run tutorial {root}{flags}\n"
        f"  on a cluster  python -m infra.jobs.submit run fast{flags}"
    )


def data_flags(data: Data) -> list[str]:
    """Return the flags that give these settings, but no keys of a bucket: they may be logged."""
    words = list[str]()
    for name, value in data.model_dump(exclude_defaults=True).items():
        words.append(f"--data.{name.replace('_', '-')}")
        if isinstance(value, tuple):
            words += map(str, value)
        elif value is not True:
            words.append(_without_keys(str(value)))
    return words


def _without_keys(location: str) -> str:
    """Return a path or URI without its keys. Its options stay."""
    uri, mark, options = location.partition("?" if "://" in location else "\0")
    return redact(uri) + mark + options
