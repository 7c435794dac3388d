"""Readers: the rows of source files of each format, as `RowBatch`es of uint8 images.

`data/sources.py` (preprocessing) and `data/scoring_inputs.py` (scoring) choose a reader per file;
`data/partitions.py` reads ranges of rows through it. Modules in reading order: `rows` (the protocol
`Reader`, and `Rows`, several readers in order), `idx_format` and `idx`, `image_folder`, `parquet`,
`parquet_columns` and `parquet_stream`.

To add a reader: write a module here with a frozen dataclass that implements `rows.Reader` and a
function `open_FORMAT(storage, path, ...)` that verifies the file and returns it. Then choose it in
`sources._open_folder` (by the names of the files) and in `scoring_inputs._open_file` (by the first
bytes). Return rows that cannot be decoded as `RowBatch.rejects`; do not raise for them.

Each form of the Parquet column `image` is recognized in `parquet_columns.image_shape` and decoded
in `parquet_columns.decode_images`: raw pixels as fixed-size binary by `_decode_fixed_size`; raw
pixels, PNG or JPEG as binary, or in the struct of bytes and path that Hugging Face writes, by
`_decode_binary`; lists and tensors of numbers by `_decode_lists`.
"""
