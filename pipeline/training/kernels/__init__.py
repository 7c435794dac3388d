"""Faster steps than the textbook's, with the same arithmetic. Nothing else depends on them.

`mlp_step` trains an Mlp on CPUs: `manual_step` is its forward and backward pass, `vectors` the
layout of its parameters, `gradient_sync` the all-reduce between workers, and `optimizers` the
update. `graph_step` trains any network on GPUs, by CUDA graphs.
"""
