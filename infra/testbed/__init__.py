"""A cluster of Ray on one Linux machine, whose nodes can be cut off, slowed and killed.

    python -m infra.testbed --nodes 2 -- python -m pipeline run

`namespaces` makes nodes out of Linux namespaces, `delay` slows their cables, and `cluster` starts
Ray on them.
"""
