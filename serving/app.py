"""The Ray Serve application: a model version behind the HTTP routes, in any number of replicas.

    serve run serving.app:build_app model=mnist/production

Deployed by `infra/serve.yaml` on a cluster, and by `python -m serving` on one machine.
"""

# No `from __future__ import annotations`: it hides from Ray Serve that build_app's argument is a
# pydantic model, and Serve would hand over a plain dict, unchecked.

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from serving.following import Following, check
from serving.metrics import Metrics
from serving.routes import build_routes
from serving.settings import AppSettings, checked

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.ingress()
class ModelServer:
    """A replica: the model version that is served, with one thread."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._following = Following(settings)

    def __serve_build_asgi_app__(self) -> Starlette:
        background = (self._following.follow, Metrics(self._following).export)
        return build_routes(self._following, self._settings, background)

    def check_health(self) -> None:
        """Raises where the model no longer answers; past the queue, which may rightly be full."""
        check(self._following.served.predictor)


def build_app(settings: AppSettings) -> Application:
    """The application, for `serve run`, `serve deploy` and `python -m serving`."""
    settings = checked(settings)
    deployment = serve.deployment(
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": 1},
        # Every request has a row at least, so the batcher's bound, which answers as the protocol
        # wants, is met before Serve's.
        max_ongoing_requests=settings.max_queue_rows + settings.max_batch_rows + 1,
        max_constructor_retry_count=3,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LOGGING,
    )
    return deployment(ModelServer).bind(settings)
