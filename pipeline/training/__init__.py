"""Data-parallel training of a network on a dataset; the stage `train` calls it.

Read `loop` (the training function), `textbook_step` (a step as PyTorch's guides have it), and
`ray_trainer` (starts the workers with Ray Train, again if they die). Then, for one question each:

- the data: `batch_loader` (the batches of an epoch, and each worker's slice), `lanes` and
  `shard_pool` (of a split that memory does not hold), `augment`;
- the step: `steps` (the interface and the choice), `schedule`, `kernels` (faster steps);
- the record: `recorder` (metrics and checkpoints), `checkpoints`, `history`, `run_state`;
- the machine: `process_group` (connects workers), `gpus`, `requirements`.
"""
