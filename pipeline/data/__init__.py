"""Data: source files -> validated rows -> shards of a dataset; also the inputs of scoring.

Used by the stages `preprocess` and `score`; training reads the shards. Modules in reading order:
`catalog`, `download` and `cache` (named data sets and URLs), `layout` (which files are data, and of
which split), `folders` and `array_pairs` (the form of a folder's files), `classes`, `sources` (all
of a source), `scoring_inputs`, `readers` (a package), `draw` and `splits` (rows -> `train`, `val`,
`test`), `plan` (rows -> shards), `blocks` and `datasource` (rows as Datasets of Ray), `validation`,
`shards` (the format of datasets), `shard_writer` and `resume` (blocks -> files), `dataset_writer`
and `streaming` (all of this as tasks of Ray Data), `ray_dataset` (for functions of one's own),
`contact_sheet`.
"""
