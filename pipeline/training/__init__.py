"""Data-parallel training of the network on a dataset; the stage `train` calls it.

Read `ray_trainer` (starts the workers with Ray Train), `process_group` (connects them), `loop` (one
worker: epochs, validation, checkpoints), `batch_loader` (the order of an epoch, and each worker's
slice; `lanes` and `shard_pool` if memory does not hold the split), `parallel_step` (a step, with
its parts in `kernels`), `schedule`, `augment`, `checkpoints`, `run_state`, and `gpus` (whether
torch can use those that Ray counts).
"""
