from __future__ import annotations

import pytest

from pipeline.command_line import parse
from pipeline.config import Data, Run
from pipeline.stages.run import data_flags


@pytest.mark.parametrize(
    "data",
    [
        Data(),
        Data(name="my-digits", source="/a folder/it's [mine]?", size=(28, 20), grey=True),
        Data(source="s3://bucket/digits?region=eu-west-1", fit="mass", invert="auto", seed=3),
        Data(source="https://example.org/digits", cache="~/a", split_by="split.csv", num_val=5),
        Data(on_unreachable="sample", rows_per_shard=10, on_bad_row="quarantine"),
    ],
)
def test_the_flags_of_the_next_steps_give_the_same_settings(data: Data) -> None:
    settings = parse(["run", *data_flags(data)])
    assert isinstance(settings, Run)
    assert settings.data == data


def test_the_flags_of_the_next_steps_hold_no_keys() -> None:
    data = Data(source="s3://KEY:SECRET@bucket/digits?endpoint_override=127.0.0.1:9000")
    assert data_flags(data) == [
        "--data.source",
        "s3://bucket/digits?endpoint_override=127.0.0.1:9000",
    ]
