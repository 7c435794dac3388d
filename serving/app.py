"""The Ray Serve application: a model version behind the HTTP routes, in any number of replicas.

    serve run serving.app:build_app model=mnist/production

Deployed by `infra/serve.yaml` on a cluster, and by `python -m serving` on one machine.
"""

# No `from __future__ import annotations`: it hides from Ray Serve that the argument of build_app is
# a pydantic model, and Serve would pass a plain dict, unchecked.

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from pipeline.contract import ImageSpec
from serving.config import AppSettings, checked
from serving.grpc.service import InferenceService
from serving.http.routes import build_routes
from serving.ingress.cores import avoid_ingress_core
from serving.model.prometheus import MetricsExporter
from serving.model.watcher import ModelWatcher
from serving.ray_hooks import BypassProxyHandling

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.ingress()
class ModelServer(InferenceService):
    """A replica: it serves the version of an alias, on one device."""

    def __init__(self, settings: AppSettings, image: ImageSpec) -> None:
        self.settings = settings
        self.watcher = ModelWatcher(settings, image)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        avoid_ingress_core()
        background = (self.watcher.run, MetricsExporter(self.watcher).export)
        BypassProxyHandling.routes = build_routes(self.watcher, self.settings, background)
        return BypassProxyHandling.routes

    def check_health(self) -> None:
        """Raise NotReady if the model fails its self-test, or the queue does not move."""
        self.watcher.require_ready()


def build_app(settings: AppSettings) -> Application:
    """Build the application for `serve run`, `serve deploy` and `python -m serving`."""
    settings, image = checked(settings)
    deployment = serve.deployment(
        num_replicas=settings.num_replicas,
        ray_actor_options={
            "num_cpus": settings.num_threads,
            "num_gpus": int(settings.device == "cuda"),
        },
        # Every request has at least one row, so the batcher's bound, which answers in the words of
        # the protocol, is reached before Serve's.
        max_ongoing_requests=settings.max_queue_rows + settings.max_batch_rows + 1,
        max_constructor_retry_count=3,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LOGGING,
    )
    return deployment(ModelServer).bind(settings, image)
