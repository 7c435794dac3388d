"""The settings of serving: what the application takes, and what `python -m serving` adds to it.

Values are checked when they are made, so what takes settings may trust them.
"""

from __future__ import annotations

import os

from pydantic import Field, ValidationInfo, field_validator

from pipeline.predictor import Predictor
from pipeline.registry import find_model
from pipeline.settings import Settings
from pipeline.storage import Storage


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
    max_body_mib: int = Field(default=16, ge=1)
    """MiB a request's body."""

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mib << 20

    @field_validator("max_queue_rows")
    @classmethod
    def _check_queue(cls, max_queue_rows: int, info: ValidationInfo) -> int:
        if max_queue_rows < info.data.get("max_request_rows", 0):
            raise ValueError("must hold a whole request: see --max-request-rows")
        return max_queue_rows


class ServerSettings(AppSettings):
    """Serve a model over HTTP: for PNG images, and for clients of the Open Inference Protocol."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""


def pinned(settings: AppSettings) -> AppSettings:
    """The settings with an absolute root and a version for an alias, whose model was tried to load.

    So all replicas serve the same version, wherever and whenever they start, and a model that is
    missing, damaged or not to be run is a UserError before any does.
    """
    storage = Storage(settings.root)
    model = Predictor(storage, find_model(storage, settings.model)).model
    values = {name: getattr(settings, name) for name in AppSettings.model_fields}
    return AppSettings(**{**values, "root": storage.root, "model": model.ref})
