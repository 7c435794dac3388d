"""The parts of a training step that are written by hand for speed, each compared with torch.

`manual_step` is the forward and backward pass, `gradient_sync` the all-reduce between workers, and
`optimizers` the update.
"""
