"""From an image file to the pixels that a model takes, for every reader and for the server.

Modules in reading order: `decode` (PNG and JPEG to grayscale), `normalize` (crop, scale and centre
a drawing as MNIST's digits were made; used by the server alone).
"""
