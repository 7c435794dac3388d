"""Turn request bodies into arrays and predictions into replies. No HTTP, no gRPC, no Ray.

In reading order: `types` (what requests and replies share), `v2_request` and `v2_response` (infer
requests of the Open Inference Protocol), `v2_metadata` (the model's description), `v1` (TensorFlow
Serving's protocol), `image_input` (image files), `openapi` (the document of all HTTP routes).
"""
