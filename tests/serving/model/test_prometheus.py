from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import ray
import requests

from pipeline.artifacts.storage import Storage
from serving.config import AppSettings
from serving.model.prometheus import MetricsExporter
from serving.model.watcher import ModelWatcher
from tests.support.processes import wait_for
from tests.support.stripes_model import publish, stripe


def test_statistics_are_exported_by_the_node(ray_session: None, tmp_path: Path) -> None:
    publish(Storage(str(tmp_path)))
    watcher = ModelWatcher(AppSettings(root=str(tmp_path), model="stripes/production"))
    loaded = watcher.current
    metrics = MetricsExporter(watcher)
    for _ in range(2):
        asyncio.run(loaded.batcher.predict(np.stack([stripe(0)] * 3)))
        metrics._export(loaded)
    loaded.batcher.statistics.errors["RequestInvalid"] += 1
    metrics._export(loaded)

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    version = f'version="{loaded.model.version}"'

    def value(name: str, *labels: str) -> float:
        for line in requests.get(address, timeout=10).text.splitlines():
            if line.startswith(f"ray_pipeline_{name}{{") and all(
                label in line for label in (version, *labels)
            ):
                return float(line.split()[-1])
        return 0.0

    wait_for(lambda: value("errors_total", 'kind="RequestInvalid"') == 1)
    assert value("rows_total") == 6
    assert value("requests_total", 'outcome="success"') == 2
    assert value("batches_total", 'rows="4"') == 2
    assert value("model_seconds_total") > 0
    assert value("version_refused") == 0
