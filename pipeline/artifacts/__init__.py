"""Artifacts on a storage root: files, their manifests, and names for model versions.

The bottom package: every stage writes its artifact through it, and reads those of earlier stages.
Modules in reading order: `storage` (atomic files; `local_files` and `object_files` hold them,
`buckets` connects to object stores, `threads` waits for them), `manifests` (what an artifact
records), `commit` (write files, then the manifest), `replacement` (`--force`), `registry` (model
versions and aliases).
"""
