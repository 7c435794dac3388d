"""Ask the cluster's autoscaler for resources. A cluster without one ignores that.

A request holds for the whole cluster until another replaces it, also one of another job.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

_asked = False


def ask(bundles: Sequence[dict[str, int]]) -> None:
    """Ask for a cluster that holds all these resources at once, those in use among them."""
    global _asked
    # Imported late, because it is slow and most runs wait for nothing.
    from ray.autoscaler.sdk import request_resources

    _asked = True
    request_resources(bundles=list(bundles))


def withdraw() -> None:
    """Withdraw the request of this process, if there is one: nodes that idle may end."""
    global _asked
    if _asked and ray.is_initialized():
        ask([])
        _asked = False
