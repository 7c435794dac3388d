"""Ray: a connection to it, what it must have, and what is used of its private parts.

Every stage that needs Ray starts here, and so does the server. Modules in reading order:
`connection` (start or join), `resources` (CPUs, GPUs, files that all nodes see), `ray_hooks`
(private parts).
"""
