"""The settings of serving: what the application takes, and what `python -m serving` adds to it.

Values are checked when they are made, so what takes settings may trust them.
"""

from __future__ import annotations

import os
from ipaddress import ip_address

from pydantic import Field, ValidationInfo, field_validator

from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.models.predictor import Predictor
from pipeline.settings import Settings
from serving.keys import DIGEST


class AppSettings(Settings):
    """Settings of the application, wherever it is deployed."""

    root: str = Field(default_factory=lambda: os.environ.get("PIPELINE_ROOT", "artifacts"))
    """Storage root: a folder, or a URI such as s3://bucket/path (env: PIPELINE_ROOT)."""
    model: str = Field(default_factory=lambda: os.environ.get("PIPELINE_MODEL", "mnist/production"))
    """Model: NAME/VERSION or NAME/ALIAS (env: PIPELINE_MODEL)."""
    num_replicas: int = Field(default=1, ge=1)
    """Copies of the model; each has one CPU."""
    max_batch_rows: int = Field(default=1024, ge=1)
    """Images a call of the model: those of requests that came while it was busy are joined."""
    max_request_rows: int = Field(default=4096, ge=1)
    """Images a request."""
    max_queue_rows: int = Field(default=16_384, ge=1)
    """Images that wait in a replica; requests beyond are told to come again."""
    max_body_mib: int = Field(default=16, ge=1, le=512)
    """MiB a request's body."""
    api_keys: tuple[str, ...] = Field(
        default_factory=lambda: tuple(os.environ.get("PIPELINE_API_KEYS", "").split())
    )
    """Digests of the keys that clients must send one of, as `python -m serving.keys` prints them
    (env: PIPELINE_API_KEYS, with spaces between); without any, all may ask."""

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mib << 20

    @field_validator("max_queue_rows")
    @classmethod
    def _check_queue(cls, max_queue_rows: int, info: ValidationInfo) -> int:
        if max_queue_rows < info.data.get("max_request_rows", 0):
            raise ValueError("must hold a whole request: see --max-request-rows")
        return max_queue_rows

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, api_keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(DIGEST.fullmatch(digest) for digest in api_keys):
            raise ValueError("must be digests of 64 hex digits: see python -m serving.keys")
        return api_keys


class ServerSettings(AppSettings):
    """Serve a model over HTTP: for PNG images, and for clients of the Open Inference Protocol."""

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs --api-keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for gRPC, which is not served without it; 0 takes a free one; needs --api-keys."""

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str, info: ValidationInfo) -> str:
        loopback = host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
        if not loopback and not info.data.get("api_keys"):
            raise ValueError("is open to others, so it needs --api-keys")
        return host

    @field_validator("grpc_port")
    @classmethod
    def _check_grpc_port(cls, grpc_port: int | None, info: ValidationInfo) -> int | None:
        # Whatever the host, Ray's replicas listen for gRPC on all addresses.
        if grpc_port is not None and not info.data.get("api_keys"):
            raise ValueError("is open to others, so it needs --api-keys")
        return grpc_port


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def checked(settings: AppSettings) -> AppSettings:
    """The settings with an absolute root, whose model was tried to load.

    So a model that is missing, damaged or not to be run is a UserError before any replica starts.
    """
    storage = Storage(settings.root)
    Predictor(storage, find_model(storage, settings.model))
    values = {name: getattr(settings, name) for name in AppSettings.model_fields}
    return AppSettings(**{**values, "root": storage.root})
