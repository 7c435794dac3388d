"""The ingress: HAProxy in front of the replicas, the first to see a request.

Modules in reading order: `rules` (what HAProxy rejects, and its error pages), `cores` (the core on
which it runs), `ports` (free ports of this machine). Ray Serve starts HAProxy; how its
configuration gets these rules stands in `serving.ray_hooks`.
"""
