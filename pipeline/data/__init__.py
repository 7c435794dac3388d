"""Data: source files -> validated rows -> shards of a dataset; also the inputs of scoring.

Used by the stages `preprocess` and `score`; training reads the shards. Modules in reading order:
`catalog` and `download` (named data sets), `sources` and `scoring_inputs` (which choose a reader
per file), `readers` (a package), `validation`, `shards` (the format of datasets), `partitions`
(row ranges -> shards, on Ray Data), `inspection` (validation of a whole source), `contact_sheet`.
"""
