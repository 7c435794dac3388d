"""Networks by name. Modules of one's own are files in a folder that Python imports from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.contract import ImageSpec
from pipeline.errors import SettingError
from pipeline.models.factory import BUILT_IN, create_model, model_source_digest
from pipeline.recipes import NETWORKS, Training, is_mlp, read_training
from tests.support.own_network import CODE
from tests.test_docs import FENCE, REPOSITORY

IMAGE = ImageSpec(4, 6, ("a", "b", "c"))

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Write a module that Python can import, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> str:
        (tmp_path / f"{tmp_path.name}.py").write_text(code)
        return tmp_path.name

    return write


def weights(training: Training) -> torch.Tensor:
    return torch.cat([p.flatten() for p in create_model(IMAGE, training).parameters()])


def test_the_settings_know_the_built_in_networks() -> None:
    assert tuple(BUILT_IN) == NETWORKS


@pytest.mark.parametrize("name", [*NETWORKS, "own"])
def test_first_weights_follow_from_the_seed_alone(name: str, write_module: WriteModule) -> None:
    model = f"{write_module(CODE)}:build" if name == "own" else name
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = weights(Training(model=model, seed=1))
    assert torch.equal(torch.rand(3), expected), "other random numbers changed"
    assert torch.equal(weights(Training(model=model, seed=1)), one)
    assert not torch.equal(weights(Training(model=model, seed=2)), one)


@pytest.mark.parametrize("name", [*NETWORKS, "own"])
def test_a_new_network_is_ready_to_be_trained(name: str, write_module: WriteModule) -> None:
    model = f"{write_module(CODE)}:build" if name == "own" else name
    assert create_model(IMAGE, Training(model=model)).training


def test_only_the_source_of_an_own_network_has_a_digest(write_module: WriteModule) -> None:
    training = Training(model=f"{write_module(CODE)}:build")
    assert model_source_digest(training) == hashlib.sha256(CODE.encode()).hexdigest()
    assert [model_source_digest(Training(model=name)) for name in NETWORKS] == [None, None]
    with pytest.raises(SettingError, match="'sys:exit': its module is in no file"):
        model_source_digest(Training(model="sys:exit"))


@pytest.mark.parametrize("name", ["resnet", "a.b", ":f", "a:", "a b:f", "../a:f", "a:b.c", ""])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="--train.model is .*use mlp, cnn or package.module:fac"):
        Training(model=name)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import no_such_library", "No module named 'no_such_library'.*install what is missing"),
        ("1 +", "its module cannot be imported: SyntaxError: .*line 1"),
        ("pass", "no function of this name"),
        ("build = 3", "no function of this name"),
        ("def build(image, training): return 3", "it returned a value of type int"),
        ("def build(image): pass", r"it raised TypeError: build\(\) takes 1 positional argument"),
        ("def build(i, t):\n    raise ValueError('a\\nb')", r"ValueError: a \(.*\.py, line 2\)"),
        (CODE.replace("num_classes", "width"), r"returned float32 \(2, 6\) for images, uint8"),
        (CODE.replace("/ 255", ""), "its network raised RuntimeError: .*, line 11.*for images"),
        (CODE.replace("255))", "255)).double()"), r"returned float64 .*Return logits, float32 \(2"),
        (CODE.replace("return self.drop", "return [3] or"), "returned a value of type list"),
    ],
)
def test_an_own_network_that_cannot_be_used_is_named(
    write_module: WriteModule, code: str, problem: str
) -> None:
    name = f"{write_module(code)}:build"
    with pytest.raises(SettingError, match=problem) as error:
        create_model(IMAGE, Training(model=name))
    assert str(error.value).startswith(f"--train.model is '{name}': ")
    assert "\n" not in str(error.value)


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(SettingError, match="No module named 'no_such_module'"):
        create_model(IMAGE, Training(model="no_such_module:build"))


def test_settings_of_older_manifests_are_read() -> None:
    old = {"hidden_sizes": [7], "a_former_setting": 3}
    assert read_training(old) == Training(hidden_sizes=(7,))
    assert is_mlp(old)
    assert not is_mlp({**old, "model": "cnn"})


def test_the_example_of_the_documentation_is_a_network(write_module: WriteModule) -> None:
    page = (REPOSITORY / "docs/python-api.md").read_text()
    (code,) = (code for _, code in FENCE.findall(page) if "def wide" in code)
    network = create_model(IMAGE, Training(model=f"{write_module(code)}:wide"))
    assert network(torch.zeros(5, 4, 6, dtype=torch.uint8)).shape == (5, 3)
