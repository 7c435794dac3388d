"""What a replica has done, as metrics of Ray, which each node exports to Prometheus.

They are counted by `Statistics`, and handed to Ray once a second: a metric of Ray takes longer to
record than the model takes for an image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from ray.serve.metrics import Counter, Gauge

from serving.model.watcher import LoadedModel, ModelWatcher

PERIOD_S = 1.0

MODEL: Any = ("model", "version")

COUNTERS = {
    "requests": ("Requests for predictions that reached the queue, by outcome.", "outcome"),
    "request_seconds": ("Time of those requests, queue and model together.", "outcome"),
    "errors": ("Requests that were refused, by kind.", "kind"),
    "rows": ("Images that the model was shown.", ""),
    "batches": ("Calls of the model, by their rows, rounded up to a power of 2.", "rows"),
    "queue_seconds": ("Time that requests waited for the model.", ""),
    "model_seconds": ("Time that the model took.", ""),
}
"""Names of counters; what they count; the label that they have beside the model's, if any."""


class MetricsExporter:
    """Hands the statistics of what is served to Ray."""

    def __init__(self, watcher: ModelWatcher) -> None:
        self._watcher = watcher
        self._counters = {
            name: Counter(
                f"pipeline_{name}", description=text, tag_keys=(*MODEL, *([label] if label else []))
            )
            for name, (text, label) in COUNTERS.items()
        }
        self._waiting = Gauge(
            "pipeline_waiting_rows", description="Images that wait for the model.", tag_keys=MODEL
        )
        self._refused = Gauge(
            "pipeline_version_refused",
            description="1 while the alias names a version that is refused.",
            tag_keys=MODEL,
        )
        self._handed = dict[tuple[str, str, str], float]()

    async def export(self) -> None:
        """Exports until it is cancelled; of a version that was replaced, a last time."""
        served = self._watcher.served
        while True:
            await asyncio.sleep(PERIOD_S)
            self._export(served)
            if served is not self._watcher.served:
                served = self._watcher.served
                self._handed.clear()

    def _export(self, served: LoadedModel) -> None:
        model = {"model": served.model.name, "version": served.model.version}
        for (name, value), total in _totals(served):
            key = (served.model.version, name, value)
            if (new := total - self._handed.get(key, 0.0)) > 0:
                label = COUNTERS[name][1]
                self._counters[name].inc(new, model | ({label: value} if label else {}))
                self._handed[key] = total
        self._waiting.set(served.batcher.waiting_rows, model)
        self._refused.set(self._watcher.refused is not None, model)


def _totals(served: LoadedModel) -> Iterator[tuple[tuple[str, str], float]]:
    """By counter and the value of its label, the totals since the version was loaded."""
    statistics = served.batcher.statistics
    for outcome, duration in (("success", statistics.success), ("fail", statistics.fail)):
        yield ("requests", outcome), duration.count
        yield ("request_seconds", outcome), duration.ns / 1e9
    for kind, count in statistics.errors.items():
        yield ("errors", kind), count
    for rows, duration in statistics.batches.items():
        yield ("batches", str(rows)), duration.count
    yield ("rows", ""), statistics.rows
    yield ("queue_seconds", ""), statistics.queue.ns / 1e9
    yield ("model_seconds", ""), statistics.model.ns / 1e9
