"""The network, and a model version as an ONNX file: written by `export`, read by all that predict.

Read `mlp`, then `onnx_export`, `quantize` and `parity`, which write and check the file.
`predictor` runs it in onnxruntime, `numpy_forward` in numpy, and `summary` draws its layers.
"""
