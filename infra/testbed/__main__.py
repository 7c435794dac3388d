"""Run a command on the head of a testbed: `python -m infra.testbed --nodes 2 -- COMMAND`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from infra.testbed import cluster, namespaces


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.testbed", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that Ray counts on each node")
    parser.add_argument("--shared", type=Path, help="a folder that all nodes see")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    if reason := namespaces.missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as scratch,
        cluster.started(
            options.nodes, cpus=options.cpus, shared=(options.shared or Path(scratch)).resolve()
        ) as testbed,
        testbed.popen(*options.command, cwd=Path.cwd()) as process,
    ):
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
