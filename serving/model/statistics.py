"""What a replica has done since it started, in the form of the statistics extension."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.artifacts.manifests import ModelManifest
from serving.protocol.types import Json


@dataclass
class Duration:
    """How often something was done, and for how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def json(self) -> Json:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Counts and durations of requests and of calls of the model; belongs to one event loop."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    model: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    errors: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    last_ms: int = 0

    def add_batch(self, rows: int, ns: int) -> None:
        """A call of the model."""
        self.model.add(ns)
        self.batches[1 << (rows - 1).bit_length()].add(ns)
        self.rows += rows
        self.last_ms = time.time_ns() // 1_000_000

    def json(self, model: ModelManifest) -> Json:
        """What GET /v2/models/NAME/stats answers.

        Batches are counted by their rows, rounded up to a power of 2.
        """
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
