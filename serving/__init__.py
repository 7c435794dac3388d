"""Serve a model version over HTTP and gRPC, on Ray Serve.

Packages, in the order in which a request flows through them:

    ingress       HAProxy: rejects a request that breaks the bounds before its body is read
    http, grpc    routes and methods: authentication, bodies, errors
    protocol      V2 (Open Inference Protocol) and V1: from a body to an array, and back
    model         image files to model input, batching, the loaded version and its metrics

`web` holds the files of the drawing page. Imports go one way: `__main__` > `app` > `http`, `grpc` >
`model`, `protocol` > the root modules. Of `pipeline`, only artifacts, cluster, images,
models.predictor and the root modules are imported, and never torch.
"""
