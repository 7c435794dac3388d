"""The stage `promote`: let an alias name a model version. Servers and `score` follow the alias.

python -m pipeline promote --model mnist/0f3c9a1b2d4e
"""

from __future__ import annotations

from pipeline.artifacts import registry
from pipeline.artifacts.storage import Storage
from pipeline.config import Promote
from pipeline.console import say
from pipeline.stages.figures import measured


@measured
def promote(settings: Promote) -> str:
    """Let the alias name this version; return the model's name with the alias, to serve it by."""
    alias = registry.promote(Storage(settings.root), settings.model, settings.alias)
    if alias.history:
        say(f"before: {alias.history[0]}; to roll back, promote that version")
    return f"{settings.model.partition('/')[0]}/{settings.alias}"
