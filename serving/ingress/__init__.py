"""The ingress: HAProxy in front of the replicas, the first to see a request.

Modules in reading order: `rules` (what HAProxy rejects, and its error pages), `haproxy` (the
program that Ray Serve starts in place of HAProxy), `ports` (free ports of this machine).
"""
