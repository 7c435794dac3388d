"""Serve a model version over HTTP and gRPC, on Ray Serve.

Packages, in the order in which a request flows through them:

    ingress       HAProxy: rejects a request that breaks the bounds before its body is read
    http, grpc    routes and methods: authentication, bodies, errors
    protocol      V2 (Open Inference Protocol), V1, image files: from a body to an array, and back
    model         the loaded version, batching, metrics

`web` holds the files of the drawing page. Imports go one way: `command_line` > `app` > `http`,
`grpc` > `model`, `protocol` > the root modules. Of `pipeline`, only artifacts, cluster, images,
models.predictor and the root modules are imported, and never torch.
"""
