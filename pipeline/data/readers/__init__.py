"""Readers: the rows of source files of each format, as `RowBatch`es of uint8 images.

`data/folders.py` (preprocessing) and `data/scoring_inputs.py` (scoring) choose a reader per file;
`data/plan.py` reads ranges of rows through it. Modules in reading order: `rows` (the protocol
`Reader`, and `Rows`, several readers in order), `labels`, `pixels`; then the readers: `arrays`
(with `array_format`, `idx_format` and `npy_format`), `image_folder`, `tar`, `csv`, and `tables`
(with `table_columns` and `table_streams`).

To add a reader: write a module here with a frozen dataclass that implements `rows.Reader` and a
function `open_FORMAT(storage, path, ...)` that verifies the file and returns it. Then choose it in
`folders.FORMS` (by the names of the files) and in `scoring_inputs._open_file` (by the first bytes).
Return rows that cannot be decoded as `RowBatch.rejects`; do not raise for them.
"""
