"""A cluster that has no CPUs until somebody asks for them: Ray's autoscaler with local nodes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private import fake_multi_node

from infra.testbed.cluster import REPOSITORY
from infra.testbed.namespaces import Node, Switch
from tests.support.processes import wait_for
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster

PIPELINE = (sys.executable, "-m", "pipeline")

STORE = {"object_store_memory": 100 << 20}

COMMANDS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)

CONFIG = {
    "cluster_name": "testbed",
    "max_workers": 2,
    "provider": {
        "type": "fake_multinode",
        "launch_multiple": True,
        # The nodes have the address of the head.
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0, **STORE}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, **STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    **dict.fromkeys(COMMANDS, []),
    "idle_timeout_minutes": 0.1,
}
"""The nodes of Ray's provider for tests are processes on the head's machine."""

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The id that the provider gives the head."""

HOLD = """
import ray, time
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
class Holder:
    def ready(self):
        return True

holder = Holder.remote()
ray.get(holder.ready.remote())
print("held", flush=True)
time.sleep(1000)
"""

COUNT = "import ray; ray.init(log_to_driver=False); print(ray.cluster_resources().get('CPU', 0))"


class Autoscaled:
    """A node whose Ray starts other nodes on it, at most two of one CPU."""

    def __init__(self, node: Node, folder: Path, version: str) -> None:
        self._node = node
        self._env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(CONFIG))
        flags = ("--head", f"--autoscaling-config={config}", "--num-cpus=0", "--port=6379")
        env = {**self._env, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        if version == "v2":
            self._add_defaults()
            ids = dict.fromkeys(
                ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), HEAD_ID
            )
            env |= {"RAY_enable_autoscaler_v2": "1", **ids}
        ray = Path(sys.executable).parent / "ray"
        store = f"--object-store-memory={STORE['object_store_memory']}"
        started = node.run(ray, "start", *flags, store, "--disable-usage-stats", env=env)
        assert not started.returncode, started.stderr

    def _add_defaults(self) -> None:
        """Let the provider find the file of its defaults, which Ray's wheels leave out."""
        provider = Path(fake_multi_node.__file__).parent
        script = f"""
            cp -r {provider} /tmp/provider
            echo '{{}}' > /tmp/provider/example.yaml
            mount --bind /tmp/provider {provider}
        """
        assert not self._node.run("sh", "-ec", script).returncode

    def popen(self, *args: object, **options: Any) -> subprocess.Popen[str]:
        env = {**self._env, "RAY_ADDRESS": "127.0.0.1:6379"}
        return self._node.popen(*args, env=env, cwd=REPOSITORY, **options)

    def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        env = {**self._env, "RAY_ADDRESS": "127.0.0.1:6379"}
        return self._node.run(*args, env=env, cwd=REPOSITORY)

    def num_cpus(self) -> float:
        return float(self.run(sys.executable, "-c", COUNT).stdout)


@pytest.fixture(params=["v1", "v2"])
def autoscaled(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Autoscaled]:
    with Switch() as switch:
        yield Autoscaled(switch.add_node([REPOSITORY, tmp_path]), tmp_path, request.param)


def test_an_autoscaler_is_asked_for_workers_and_then_let_go(
    autoscaled: Autoscaled, tmp_path: Path
) -> None:
    assert autoscaled.num_cpus() == 0
    flags = ("--data.name", "bars", "--data.source", write_source(tmp_path / "source"))
    training = ("--train.epochs", 3, "--train.num-workers", 2)
    root = ("--root", tmp_path / "root")
    done = autoscaled.run(*PIPELINE, "run", "fast", *root, *flags, *training, "--wait", 60)
    assert done.returncode == 0, done.stderr
    assert "1 CPU was asked for, but the cluster has none; waiting up to 60 s" in done.stderr
    assert "2 CPUs were asked for, but the cluster has 1; waiting up to 60 s" in done.stderr
    wait_for(lambda: autoscaled.num_cpus() == 0)


def test_an_autoscaler_is_asked_for_more_than_others_hold(
    autoscaled: Autoscaled, tmp_path: Path
) -> None:
    flags = ("--data.name", "bars", "--data.source", write_source(tmp_path / "source"))
    with autoscaled.popen(sys.executable, "-c", HOLD, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == "held\n"
            root = ("--root", tmp_path / "root")
            done = autoscaled.run(*PIPELINE, "preprocess", *root, *flags, "--wait", 60)
            assert done.returncode == 0, done.stderr
            assert "1 CPU was asked for, but 1 of the cluster's 1 are held" in done.stderr
        finally:
            other.kill()


def test_more_than_an_autoscaler_gives_is_told_after_the_wait(
    autoscaled: Autoscaled, tmp_path: Path
) -> None:
    flags = ("--data.name", "bars", "--data.source", write_source(tmp_path / "source"))
    training = ("--train.epochs", 3, "--train.num-workers", 3)
    root = ("--root", tmp_path / "root")
    done = autoscaled.run(*PIPELINE, "run", "fast", *root, *flags, *training, "--wait", 20)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 3 CPUs were asked for, but the cluster has ")
    assert "also after 20 s" in last
