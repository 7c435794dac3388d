"""The networks, and a model version as an ONNX file: written by `export`, read by all that predict.

Read `factory`, which makes an `mlp`, a `cnn` or anyone's own network. Then read `classifier` and
`onnx_export`, `quantize` and `parity`, which write and check the file. `predictor` runs it in
onnxruntime, and `summary` lists and draws its layers. Of an Mlp alone, `numpy_forward` is the
forward pass in numpy, and `quantize` rounds the weights.
"""
