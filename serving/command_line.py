"""The command `python -m serving`: start Ray and the application, and stop both at a signal."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import tyro

from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.contract import VERSION
from pipeline.errors import ResourcesMissing, SettingError
from serving import ray_hooks
from serving.config import AppSettings, ServerSettings, checked
from serving.ingress.ports import free_ports

APP_NAME = "default"

READY_TIMEOUT_S = 60

CPUS_TIMEOUT_S = 8
"""Time for the CPUs of a cluster to be free for the replicas."""


def run_server() -> None:
    """Run the command line.

    Raise KeyboardInterrupt if a signal comes before the server is ready.
    """
    if sys.argv[1:] == ["--version"]:
        print(VERSION)
        return
    serve_until_stopped(tyro.cli(ServerSettings, prog="python -m serving"))


def serve_until_stopped(settings: ServerSettings) -> None:
    """Serve until a signal, then end what was started."""
    app_settings, _ = checked(settings)
    _require_free(settings.host, settings.port)
    free, free_grpc, *inner = free_ports(settings.host, 6)
    port, grpc_port = settings.port or free, settings.grpc_port
    if grpc_port is not None:
        grpc_port = grpc_port or free_grpc
        _require_free(settings.host, grpc_port)
    with TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as folder:
        # Who started a cluster has decided how it serves: its environment is set already.
        if not os.environ.get("RAY_ADDRESS") and sys.platform == "linux":
            environment = ray_hooks.ingress_environment(
                Path(folder),
                inner,
                max_body_bytes=app_settings.max_body_bytes,
                num_replicas=app_settings.num_replicas,
            )
            for name, value in environment.items():
                os.environ.setdefault(name, value)
        _serve(app_settings, settings.host, port, grpc_port)


def _serve(settings: AppSettings, host: str, port: int, grpc_port: int | None) -> None:
    # Ray reads its environment when it is imported. It also takes two seconds, for which neither
    # --help nor a wrong setting should wait.
    from ray import serve

    from pipeline.cluster import connection
    from pipeline.cluster.workers import require_workers
    from serving.app import LOGGING, build_app
    from serving.grpc.service import SERVICER

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connection.connected():
        require_workers(
            settings.num_replicas,
            cpus=settings.num_threads,
            gpus=int(settings.device == "cuda"),
            wait_s=CPUS_TIMEOUT_S,
        )
        if serve.status().proxies:
            raise SettingError(
                "The Ray cluster at RAY_ADDRESS already runs Serve. Use serve deploy "
                "infra/serve.yaml there, or unset RAY_ADDRESS to start a separate server."
            )
        grpc_options = {"port": grpc_port, "grpc_servicer_functions": [SERVICER]}
        try:
            serve.start(
                http_options={"host": host, "port": port},
                grpc_options=grpc_options if grpc_port else None,
                logging_config=LOGGING,
            )
            serve.run(build_app(settings), name=APP_NAME)
            _wait_until_ready(f"http://{host}:{port}/v2/health/ready")
            model = find_model(Storage(settings.root), settings.model).ref
            _announce(model, f"http://{host}:{port}", f"{host}:{grpc_port}" if grpc_port else None)
            _wait_for_signal()
            serve.delete(APP_NAME)
        finally:
            if os.environ.get("RAY_ADDRESS"):
                serve.shutdown()


def _wait_until_ready(url: str) -> None:
    """Wait for the ingress: Serve reports an application as running before requests reach it."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            # A proxy that the environment names may not reach this machine's addresses.
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise ResourcesMissing(
        f"The model is loaded, but {url} does not answer. See the logs in {_logs()}, then start "
        "the server again."
    )


def _wait_for_signal() -> None:
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass


def _announce(model: str, url: str, grpc: str | None) -> None:
    print(f"serving {model} at {url}{f' and grpc://{grpc}' if grpc else ''}", flush=True)
    print(
        f"Try: curl --data-binary @digit.png {url}/predict (Ctrl-C stops the server; "
        f"its logs are in {_logs()})",
        file=sys.stderr,
    )


def _logs() -> str:
    """Return the folder of Serve's logs. Ray's own folder is chosen as Ray itself does it."""
    import ray

    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return f"{folder}/ray/{ray.get_runtime_context().get_session_name()}/logs/serve"


def _require_free(host: str, port: int) -> None:
    """Raise SettingError if another process listens on the port.

    Ray's proxies share ports, so a second server would silently take half of the requests.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise SettingError(
            f"Cannot listen at --host {host} --port {port}: {error.strerror}. "
            "Give another --port, or 0 for a free one."
        ) from None
