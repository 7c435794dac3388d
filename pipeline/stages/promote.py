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

SEEN_S = 3
"""Time for a server to look at an alias and its files."""

ANSWERS = 5
"""Answers in a row that must be by the version, as each may be of another replica."""

POLL_S = 0.2


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
    """Ask a server until it answers by this version several times in a row, or refuses it."""
    started, in_a_row = time.monotonic(), 0
    while True:
        answer, waited_s = _ask(server, name), time.monotonic() - started
        in_a_row = in_a_row + 1 if answer.get("version") == version else 0
        if in_a_row == ANSWERS:
            return
        refused = answer.get("refused", {})
        # What it refused before may have been repaired, which it sees within a second.
        if refused.get("version") == version and waited_s > SEEN_S:
            raise ModelRejected(
                f"The server at {server} refuses {name}/{version}, and goes on with "
                f"{answer['version']}: {refused['reason']}"
            )
        if waited_s > SERVED_S:
            answers = f"by {answer['version']}" if "version" in answer else answer.get("error")
            raise ResourcesMissing(
                f"The server at {server} does not answer by {version} after {SERVED_S} s, but "
                f"{answers}. Does it follow this alias and storage root?"
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
        answer: Any = reply.json()
        if not isinstance(answer, dict):
            raise ValueError("it is not a server of this project")
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
