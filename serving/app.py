"""The Ray Serve application: a model version behind the HTTP routes, in any number of replicas.

    serve run serving.app:build_app model=mnist/production

Deployed by `infra/serve.yaml` on a cluster, and by `python -m serving` on one machine.
"""

# No `from __future__ import annotations`: it hides from Ray Serve that build_app's argument is a
# pydantic model, and Serve would hand over a plain dict, unchecked.

from typing import ClassVar

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.edge import leave_core
from serving.following import Following, check
from serving.metrics import Metrics
from serving.routes import build_routes
from serving.rpc import Rpc
from serving.settings import AppSettings, checked

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.ingress()
class ModelServer(Rpc):
    """A replica: the model version that is served, with one thread."""

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self.following = Following(settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        leave_core()
        background = (self.following.follow, Metrics(self.following).export)
        Direct.replica = build_routes(self.following, self.settings, background)
        return Direct.replica

    def check_health(self) -> None:
        """Raises where the model no longer answers; past the queue, which may rightly be full."""
        check(self.following.served.predictor)


class Direct:
    """Hands a request that reached the replica itself to its routes, past what Ray does for it.

    Ray's share is as long as theirs. The routes bound what waits, and count what they do.
    """

    replica: ClassVar[ASGIApp | None] = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Ray's own paths, such as that of its health check, begin with /-/.
        ours = scope["type"] == "http" and not scope["path"].startswith("/-/")
        app = Direct.replica if ours and Direct.replica else self._app
        await app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: what Ray puts before its own handling."""
    return [Middleware(Direct)]


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
