"""The statistics of a replica as metrics of Ray, which each node exports to Prometheus.

`Statistics` counts; this module passes the totals to Ray once a second, as recording a metric of
Ray takes longer than predicting an image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from ray.serve.metrics import Counter, Gauge

from serving.model.watcher import LoadedModel, ModelWatcher

PERIOD_S = 1.0

MODEL_TAGS: Any = ("model", "version")

COUNTERS = {
    "requests": ("Requests for predictions that entered the queue, by outcome.", "outcome"),
    "request_seconds": ("Time of those requests, in the queue and in the model.", "outcome"),
    "errors": ("Rejected requests, by kind of error.", "kind"),
    "rows": ("Images that the model has predicted.", ""),
    "batches": ("Calls of the model, by their rows, rounded up to a power of 2.", "rows"),
    "queue_seconds": ("Time that requests waited for the model.", ""),
    "model_seconds": ("Time spent in calls of the model.", ""),
}
"""Description and extra label, if any, by the name of a counter.

To add one: list it here, and yield its total in `_totals`.
"""


GAUGES = {
    "waiting_rows": ("Images that wait for the model.", ""),
    "version_refused": ("1 while the alias names a version that was rejected.", ""),
    "storage_failed": ("1 while the alias cannot be read, because its storage fails.", ""),
}
"""Description and extra label, if any, by the name of a gauge.

To add one: list it here, and set it in `MetricsExporter._export`.
"""


class MetricsExporter:
    """Passes the statistics of the loaded versions to Ray."""

    def __init__(self, watcher: ModelWatcher) -> None:
        self._watcher = watcher
        self._counters = dict[str, Counter]()
        for name, (description, label) in COUNTERS.items():
            tags = (*MODEL_TAGS, label) if label else MODEL_TAGS
            self._counters[name] = Counter(
                f"pipeline_{name}", description=description, tag_keys=tags
            )
        self._gauges = {
            name: Gauge(f"pipeline_{name}", description=description, tag_keys=MODEL_TAGS)
            for name, (description, _) in GAUGES.items()
        }
        self._exported = dict[tuple[str, str, str], float]()

    async def export(self) -> None:
        """Export until cancelled; a version that is no longer loaded is exported a last time."""
        before = self._watcher.loaded
        while True:
            await asyncio.sleep(PERIOD_S)
            now = self._watcher.loaded
            gone = [loaded for loaded in before if loaded not in now]
            for loaded in (*now, *gone):
                self._export(loaded)
            for loaded in gone:
                self._forget(loaded)
            before = now

    def _export(self, loaded: LoadedModel) -> None:
        tags = {"model": loaded.model.name, "version": loaded.model.version}
        for (name, value), total in _totals(loaded):
            key = (loaded.model.version, name, value)
            increase = total - self._exported.get(key, 0.0)
            if increase > 0:
                label = COUNTERS[name][1]
                self._counters[name].inc(increase, tags | ({label: value} if label else {}))
                self._exported[key] = total
        self._gauges["waiting_rows"].set(loaded.batcher.waiting_rows, tags)
        if loaded is self._watcher.current:
            self._gauges["version_refused"].set(self._watcher.rejected is not None, tags)
            self._gauges["storage_failed"].set(self._watcher.storage_failed, tags)

    def _forget(self, loaded: LoadedModel) -> None:
        """Forget what was exported of a version: if it is loaded again, it counts from 0."""
        tags = {"model": loaded.model.name, "version": loaded.model.version}
        for gauge in self._gauges.values():
            gauge.set(0, tags)
        for key in [key for key in self._exported if key[0] == loaded.model.version]:
            del self._exported[key]


def _totals(loaded: LoadedModel) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield the totals since the version was loaded, by counter and value of its extra label."""
    statistics = loaded.batcher.statistics
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
