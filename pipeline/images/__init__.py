"""From an image file to the pixels that a model takes, for every reader and for the server.

Modules in reading order: `prepare` (what is done to an image, as its dataset says), `decode` (PNG
and JPEG to grayscale), `ink` and `lines` (what is written in an image), `normalize` (scale and
centre it as MNIST's digits were made).
"""
