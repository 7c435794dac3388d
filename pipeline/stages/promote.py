"""The stage `promote`: let an alias name a model version. Servers and `score` follow the alias.

python -m pipeline promote --model mnist/0f3c9a1b2d4e
"""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from pipeline.artifacts import registry
from pipeline.artifacts.storage import Storage
from pipeline.config import Promote
from pipeline.console import say
from pipeline.errors import ModelRejected, ResourcesMissing
from pipeline.process.addresses import is_loopback
from pipeline.stages.figures import measured

KEY_ENV = "PIPELINE_API_KEY"

SERVED_S = 60
"""Time for a server to load a version."""

POLL_S = 0.5


@measured
def promote(settings: Promote) -> str:
    """Let the alias name this version; return the model's name with the alias, to serve it by.

    With a server, raise ModelRejected if it refuses the version, and ResourcesMissing if it does
    not answer by it in time. The alias stays as it was promoted.
    """
    alias = registry.promote(Storage(settings.root), settings.model, settings.alias)
    name = settings.model.partition("/")[0]
    if alias.history:
        say(f"before: {alias.history[0]}; to roll back, promote that version")
    if settings.server:
        _wait_until_served(settings.server, name, alias.version)
        say(f"{settings.server} answers by {name}/{alias.version}")
    return f"{name}/{settings.alias}"


def _wait_until_served(server: str, name: str, version: str) -> None:
    """Ask a server until it answers by this version, or refuses it."""
    deadline = time.monotonic() + SERVED_S
    while True:
        answer = _ask(server, name)
        if answer.get("version") == version:
            return
        refused = answer.get("refused", {})
        if refused.get("version") == version:
            raise ModelRejected(
                f"The server at {server} refuses {name}/{version}, and goes on with "
                f"{answer['version']}: {refused['reason']}"
            )
        if time.monotonic() > deadline:
            raise ResourcesMissing(
                f"The server at {server} answers by {answer.get('version', 'no version')} after "
                f"{SERVED_S} s, and not by {version}. Does it follow this alias and storage root?"
            )
        time.sleep(POLL_S)


def _ask(server: str, name: str) -> dict[str, Any]:
    """Return what the server says about a model: its version, and one that it refuses."""
    key = os.environ.get(KEY_ENV)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(
            f"{server.rstrip('/')}/v2/models/{name}/ready",
            headers=headers,
            trust_env=not is_loopback(httpx.URL(server).host),
        )
        answer: dict[str, Any] = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ResourcesMissing(
            f"The server at {server} does not answer: {error}. Give its address, such as "
            "http://127.0.0.1:8000."
        ) from None
    if reply.status_code not in (200, 503):
        raise ResourcesMissing(
            f"The server at {server} answers {reply.status_code}: {answer.get('error')}"
        )
    return answer
