"""The settings of serving: `AppSettings` of the application, `ServerSettings` of the command.

Values are validated when the settings are created, so code that takes settings may trust them.
To add one: add a field here, with its help text below it. It becomes a flag of `python -m serving`.
"""

from __future__ import annotations

import os

from pydantic import Field, ValidationInfo, field_validator

from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.models.predictor import Device, Predictor
from pipeline.process.addresses import is_loopback
from pipeline.settings import Settings
from serving.keys import DIGEST


class AppSettings(Settings):
    """Settings of the Ray Serve application, on one machine or on a cluster."""

    root: str = Field(default_factory=lambda: os.environ.get("PIPELINE_ROOT", "artifacts"))
    """Storage root: a folder, or a URI such as s3://bucket/path (env: PIPELINE_ROOT)."""
    model: str = Field(default_factory=lambda: os.environ.get("PIPELINE_MODEL", "mnist/production"))
    """Model: NAME/VERSION or NAME/ALIAS (env: PIPELINE_MODEL)."""
    num_replicas: int = Field(default=1, ge=1)
    """Replicas of the model; each takes --num-threads CPUs, and with --device cuda one GPU."""
    device: Device = "cpu"
    """Device of the model. Nothing falls back to another."""
    num_threads: int = Field(default=1, ge=1)
    """Threads of a call of the model."""
    max_batch_rows: int = Field(default=1024, ge=1)
    """Maximum number of images per call of the model; waiting requests are batched up to it."""
    max_inline_rows: int = Field(default=16, ge=0)
    """Maximum number of images that the model predicts in the event loop: so many that it takes
    less time than to hand them to a thread."""
    max_request_rows: int = Field(default=4096, ge=1)
    """Maximum number of images per request."""
    max_request_pixels: int = Field(default=1 << 25, ge=1)
    """Maximum number of pixels of all image files of a request."""
    max_queue_rows: int = Field(default=16_384, ge=1)
    """Maximum number of images that wait in a replica; further requests get 503 and Retry-After."""
    keep_version_s: float = Field(default=300, ge=0)
    """Seconds for which the version before a promotion still answers requests that name it."""
    max_body_mib: int = Field(default=16, ge=1, le=512)
    """Maximum size of a request's body in MiB."""
    max_bodies_mib: int = Field(default=256, ge=1)
    """Maximum size of all bodies that a replica holds at once, in MiB; further requests get 503 and
    Retry-After."""
    api_keys: tuple[str, ...] = Field(
        default_factory=lambda: tuple(os.environ.get("PIPELINE_API_KEYS", "").split())
    )
    """Digests of the API keys, as `python -m serving.keys` prints them (env: PIPELINE_API_KEYS,
    separated by spaces). Clients must send one of the keys; without any digest, none is needed."""

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mib << 20

    @field_validator("max_bodies_mib")
    @classmethod
    def _check_bodies(cls, max_bodies_mib: int, info: ValidationInfo) -> int:
        if max_bodies_mib < info.data.get("max_body_mib", 0):
            raise ValueError("must be at least --max-body-mib, so that a whole body fits")
        return max_bodies_mib

    @field_validator("max_queue_rows")
    @classmethod
    def _check_queue(cls, max_queue_rows: int, info: ValidationInfo) -> int:
        if max_queue_rows < info.data.get("max_request_rows", 0):
            raise ValueError("must be at least --max-request-rows, so that a whole request fits")
        return max_queue_rows

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, api_keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(DIGEST.fullmatch(digest) for digest in api_keys):
            raise ValueError("must be digests of 64 hex digits, as python -m serving.keys prints")
        return api_keys


class ServerSettings(AppSettings):
    """Serve a model over HTTP, for image files and for clients of the Open Inference Protocol."""

    host: str = "127.0.0.1"
    """Address to listen on; any address other than loopback needs --api-keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 picks a free one."""
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for gRPC; 0 picks a free one; without it gRPC is off. Needs --api-keys."""

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str, info: ValidationInfo) -> str:
        if not is_loopback(host) and not info.data.get("api_keys"):
            raise ValueError("can be reached from other machines, so it needs --api-keys")
        return host

    @field_validator("grpc_port")
    @classmethod
    def _check_grpc_port(cls, grpc_port: int | None, info: ValidationInfo) -> int | None:
        # Ray's replicas listen for gRPC on all addresses, even if the host is loopback.
        if grpc_port is not None and not info.data.get("api_keys"):
            raise ValueError("can be reached from other machines, so it needs --api-keys")
        return grpc_port


def checked(settings: AppSettings) -> tuple[AppSettings, ImageSpec]:
    """Load the model once; return the settings with an absolute root, and what the model takes.

    Raise UserError if the model is missing, damaged or cannot be run, before any replica starts.
    """
    storage = Storage(settings.root)
    model = find_model(storage, settings.model)
    Predictor(storage, model)
    values = {name: getattr(settings, name) for name in AppSettings.model_fields}
    return AppSettings(**{**values, "root": storage.root}), model.image
