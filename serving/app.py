"""The Ray Serve application: a model version behind the HTTP routes, in any number of replicas.

    serve run serving.app:build_app model=mnist/production

Deployed by `infra/serve.yaml` on a cluster, and by `python -m serving` on one machine.
"""

# No `from __future__ import annotations`: it hides from Ray Serve that build_app's argument is a
# pydantic model, and Serve would hand over a plain dict, unchecked.

import numpy as np
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from pipeline.predictor import Predictor
from pipeline.registry import find_model
from pipeline.storage import Storage
from serving.batching import Batcher
from serving.routes import build_routes
from serving.settings import AppSettings, pinned

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.ingress()
class ModelServer:
    """A replica: one Predictor with one thread, and the requests batched for it."""

    def __init__(self, settings: AppSettings) -> None:
        storage = Storage(settings.root)
        self._settings = settings
        self._predictor = Predictor(storage, find_model(storage, settings.model))
        self._batcher = Batcher(
            self._predictor.predict,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
        )

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_routes(self._predictor.model, self._batcher.predict, self._settings)

    def check_health(self) -> None:
        """Raises where the model no longer answers; past the queue, which may rightly be full."""
        self._predictor.predict(np.zeros((1, *self._predictor.model.image.shape), np.uint8))


def build_app(settings: AppSettings) -> Application:
    """The application, for `serve run`, `serve deploy` and `python -m serving`."""
    settings = pinned(settings)
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
