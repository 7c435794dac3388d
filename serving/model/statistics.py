"""Counts and durations of a loaded version, in the form of V2's statistics extension."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.artifacts.manifests import ModelManifest
from serving.protocol.types import Json


@dataclass
class Duration:
    """A number of events and their total duration."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one event."""
        self.count += 1
        self.ns += ns

    def json(self) -> Json:
        """Return the pair as the statistics extension writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Counts and durations of requests and of model calls; belongs to one event loop."""

    success: Duration = field(default_factory=Duration)
    """Requests that were answered, from arrival to answer."""
    fail: Duration = field(default_factory=Duration)
    """Requests that failed or were cancelled, after they had entered the queue."""
    queue: Duration = field(default_factory=Duration)
    """Waits from a request's arrival to its first batch."""
    model: Duration = field(default_factory=Duration)
    """Calls of the model."""
    batches: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    """Calls of the model by their rows, rounded up to a power of 2."""
    errors: Counter[str] = field(default_factory=Counter)
    """Rejected requests by the class of the error."""
    rows: int = 0
    """Rows that the model has predicted."""
    last_ms: int = 0
    """Unix time of the latest call, in milliseconds; 0 before the first."""

    def add_batch(self, rows: int, ns: int) -> None:
        """Count one call of the model."""
        self.model.add(ns)
        self.batches[1 << (rows - 1).bit_length()].add(ns)
        self.rows += rows
        self.last_ms = time.time_ns() // 1_000_000

    def json(self, model: ModelManifest) -> Json:
        """Return the answer to GET /v2/models/NAME/stats."""
        none = Duration().json()
        durations = {
            "success": self.success.json(),
            "fail": self.fail.json(),
            "queue": self.queue.json(),
            "compute_input": none,
            "compute_infer": self.model.json(),
            "compute_output": none,
        }
        stats = {
            "name": model.name,
            "version": model.version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.model.count,
            "inference_stats": durations,
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": none,
                    "compute_infer": duration.json(),
                    "compute_output": none,
                }
                for rows, duration in sorted(self.batches.items())
            ],
        }
        return {"model_stats": [stats]}
