"""The model behind the protocol: the last package that a request reaches. Knows nothing of HTTP.

Modules in reading order: `watcher` (the loaded version, which follows an alias), `batcher` (dynamic
batching), `statistics` (counts and durations), `prometheus` (the same as metrics of Ray).
"""
