from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.command_line import STAGES, parse
from pipeline.config import Data, Run, Score, Train
from pipeline.errors import SettingError
from pipeline.recipes import RECIPES, Training


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Training, {"epochs": 0}, r"--train.epochs is 0: Input should be greater than or equal"),
        (Training, {"learning_rate": -1}, r"--train.learning-rate is -1"),
        (Training, {"hidden_sizes": (0,)}, r"--train.hidden-sizes"),
        (Training, {"optimizer": "sgd", "weight_decay": 0.1}, r"--train.weight-decay is 0.1"),
        (Training, {"epoch": 3}, r"--train.epoch is 3: Extra inputs"),
        (Data, {"name": "../x"}, r"--data.name is '../x': use lower-case letters"),
        (Data, {"num_val": 0}, r"--data.num-val is 0"),
        (Score, {"input": ("a",), "output": "b", "num_workers": 0}, r"--num-workers is 0"),
    ],
)
def test_a_wrong_value_names_its_flag(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        kind(**values)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Data().name = "x"  # type: ignore[misc]


def test_flags_may_stand_before_and_after_the_recipe() -> None:
    before = parse(["run", "--data.source", "x", "seed", "--train.num-workers", "2"])
    after = parse(["run", "seed", "--train.num-workers", "2", "--data.source", "x"])
    assert before == after
    assert isinstance(after, Run)
    assert after.train == RECIPES["tutorial"].model_copy(update={"num_workers": 2})


def test_the_default_recipe_is_fast() -> None:
    settings = parse(["train", "--dataset", "a/b"])
    assert isinstance(settings, Train)
    assert settings.train == RECIPES["fast"]


def test_the_seed_recipe_is_the_tutorial() -> None:
    seed = RECIPES["tutorial"]
    assert (seed.hidden_sizes, seed.epochs, seed.batch_size) == ((128,), 100, 64)
    assert (seed.optimizer, seed.learning_rate, seed.schedule) == ("sgd", 0.01, "constant")
    assert not seed.shuffle


def test_the_root_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", "s3://bucket/path")
    assert parse(["run"]).root == "s3://bucket/path"


@pytest.mark.parametrize("stage", [stage.__name__.lower() for stage in STAGES])
def test_every_stage_explains_itself(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse([stage, "--help"])
    assert end.value.code == 0
    assert "--root" in capsys.readouterr().out
