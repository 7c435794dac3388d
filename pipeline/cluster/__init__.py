"""Ray: a connection to it, what it must have, and what is used of its private parts.

Every stage that needs Ray starts here, and so does the server. Modules in reading order:
`connection` (start or join), `workers` (room for them, waited for), `autoscaler` (asked for nodes),
`resources` (memory, CPUs, files that all nodes see), `ray_hooks` (private parts).
"""
