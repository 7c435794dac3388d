"""Serve gRPC: the V2 protocol's GRPCInferenceService, through Ray Serve's gRPC ingress.

In reading order: `service` (the methods, authentication, errors), `convert` (messages to the
objects of `serving.protocol`).
"""
