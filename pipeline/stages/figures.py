"""The figures of a stage: its time, its amounts and its exit code.

They are written as JSON beside the artifact, and on request for Prometheus: in its text format into
a folder, which node_exporter reads, or to a Pushgateway.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.artifacts.manifests import Manifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Stage
from pipeline.console import warn
from pipeline.data.shard_writer import REJECTED
from pipeline.errors import UserError
from pipeline.process import signals

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PUSH_TIMEOUT_S = 10

S = TypeVar("S", bound=Stage)
R = TypeVar("R")


@dataclass
class Figures:
    """The figures of one execution of a stage."""

    stage: str
    """Name of the stage."""
    started: str
    """When it began, in UTC."""
    seconds: float = 0.0
    """How long it took."""
    exit: int = 0
    """Exit code: 0, success; 1, a bug; 2, an error that the user can fix; 130, interrupted."""
    rows: int = 0
    """Rows that it read; of `train`, those of all epochs. 0 if the artifact existed."""
    rejected: int = 0
    """Rows of them that were set aside."""
    bytes: int = 0
    """Size of the artifact's files."""
    nodes: int = 1
    """Nodes of the cluster."""


_current: ContextVar[tuple[Figures, list[tuple[Storage, str]]] | None] = ContextVar(
    "current", default=None
)


def begin(storage: Storage, folder: str, *, rows: int, nodes: int = 1) -> None:
    """Note that the stage under way reads so many rows for an artifact in this folder."""
    if current := _current.get():
        figures, places = current
        figures.rows, figures.nodes = rows, nodes
        places.append((storage, f"{folder}/{figures.stage}.figures.json".lstrip("/")))


def measured(stage: Callable[[S], R]) -> Callable[[S], R]:
    """Make a stage leave its figures, also if it fails."""

    @functools.wraps(stage)
    def measured_stage(settings: S) -> R:
        figures = Figures(stage.__name__, datetime.now(UTC).isoformat(timespec="seconds"))
        places = list[tuple[Storage, str]]()
        token, started = _current.set((figures, places)), time.perf_counter()
        try:
            result = stage(settings)
            if isinstance(result, Manifest) and places:
                figures.bytes = sum(entry.bytes for entry in result.files)
                rejects = [entry for entry in result.files if entry.path.startswith(REJECTED)]
                figures.rejected = sum(entry.rows or 0 for entry in rejects)
            return result
        except BaseException as error:
            figures.exit = _exit_code(error)
            raise
        finally:
            _current.reset(token)
            figures.seconds = round(time.perf_counter() - started, 3)
            _leave(figures, places, settings)

    return measured_stage


def _exit_code(error: BaseException) -> int:
    # A library may have turned the KeyboardInterrupt into another error.
    if signals.interrupted() or isinstance(error, KeyboardInterrupt):
        return signals.EXIT_CODE
    return 2 if isinstance(error, UserError) else 1


def _leave(figures: Figures, places: list[tuple[Storage, str]], settings: Stage) -> None:
    """Push and write the figures. A stage does not fail for them."""
    job, folder, address = settings.metrics_job, settings.metrics_dir, settings.metrics_push
    if folder:
        with _warned(figures):
            _write_text(figures, job, Path(folder))
    if address:
        with _warned(figures):
            _push(figures, job, address)
    # Last, and quietly after a failure: storage may be what the stage failed for.
    for storage, path in places:
        with suppress(Exception) if figures.exit else _warned(figures):
            storage.write(path, (json.dumps(asdict(figures), indent=2) + "\n").encode())


@contextmanager
def _warned(figures: Figures) -> Iterator[None]:
    """Turn any error into a warning: a gateway, or a file of last night, may cause many."""
    try:
        yield
    except Exception as error:
        warn(f"the figures of {figures.stage} could not be written: {error}")


def _write_text(figures: Figures, job: str, folder: Path) -> None:
    """Write the metrics into a file of their own; after a failure, keep the last success in it."""
    from prometheus_client import write_to_textfile

    path = folder / f"{job}_{figures.stage}.prom"
    labels = {"pipeline_job": job, "stage": figures.stage}
    last_success = _last_success(path) if figures.exit else None
    folder.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), _registry(figures, labels, last_success))


def _last_success(path: Path) -> float | None:
    from prometheus_client.parser import text_string_to_metric_families

    if not path.exists():
        return None
    for family in text_string_to_metric_families(path.read_text()):
        if family.name == "pipeline_stage_last_success_timestamp_seconds":
            return family.samples[0].value
    return None


def _push(figures: Figures, job: str, address: str) -> None:
    """Push the metrics; after a failure, the gateway keeps the last success."""
    from prometheus_client import pushadd_to_gateway

    registry = _registry(figures, {}, None)
    key = {"stage": figures.stage}
    pushadd_to_gateway(address, job, registry, grouping_key=key, timeout=PUSH_TIMEOUT_S)


def _registry(
    figures: Figures, labels: dict[str, str], last_success: float | None
) -> CollectorRegistry:
    """Return the metrics of a stage that ends now; `last_success` is for one that failed."""
    from prometheus_client import CollectorRegistry, Gauge

    now = time.time()
    values = {
        "last_run_timestamp_seconds": (now, "When the stage last ended"),
        "last_success_timestamp_seconds": (
            last_success if figures.exit else now,
            "When it last ended with success",
        ),
        "duration_seconds": (figures.seconds, "How long it took"),
        "exit_code": (figures.exit, "0: success; 1: a bug; 2: an error of the user; 130: stopped"),
        "rows": (figures.rows, "Rows that it read; 0 if the artifact existed"),
        "rejected_rows": (figures.rejected, "Rows of them that were set aside"),
        "rejected_ratio": (figures.rejected / max(1, figures.rows), "Share of the rejected rows"),
        "artifact_bytes": (figures.bytes, "Size of the artifact's files"),
        "nodes": (figures.nodes, "Nodes of the cluster"),
    }
    registry = CollectorRegistry()
    for name, (value, text) in values.items():
        if value is not None:
            gauge = Gauge(f"pipeline_stage_{name}", text, labels, registry=registry)
            (gauge.labels(**labels) if labels else gauge).set(value)
    return registry
