"""The network that the settings of training name: a built-in one, or anyone's own.

To add a built-in network: add it to BUILT_IN, and its name to NETWORKS in pipeline/recipes.py.
"""

from __future__ import annotations

import hashlib
import importlib
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contract import ImageSpec
from pipeline.errors import SettingError
from pipeline.models.cnn import Cnn
from pipeline.models.mlp import Mlp
from pipeline.recipes import Training

BUILT_IN: dict[str, Callable[[ImageSpec, Training], nn.Module]] = {
    "mlp": lambda image, training: Mlp(image, training.hidden_sizes, seed=training.seed),
    "cnn": lambda image, training: Cnn(image),
}

CHECKED_ROWS = 2


def create_model(image: ImageSpec, training: Training) -> nn.Module:
    """Return the network with its first weights, which follow from the seed, on the CPU.

    Raise SettingError if an own factory cannot be called, or its network returns no logits.
    """
    # The generators of GPUs are left alone: to save their state would start CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        if training.model in BUILT_IN:
            return BUILT_IN[training.model](image, training)
        return _own_model(image, training)


def model_source_digest(training: Training) -> str | None:
    """Return the SHA-256, in hex, of the source file of an own factory; None for built-in networks.

    Raise SettingError if its module cannot be imported, or is in no file.
    """
    if training.model in BUILT_IN:
        return None
    return hashlib.sha256(_source_file(_import(training.model), training.model)).hexdigest()


def _own_model(image: ImageSpec, training: Training) -> nn.Module:
    """Return the network of an own factory, after a forward pass of black images."""
    name = training.model
    module = _import(name)
    factory = _factory(module, name)
    try:
        model = factory(image, training)
    except Exception as error:
        raise _error(name, f"it raised {_describe(error, module)}. Correct it") from error
    if not isinstance(model, nn.Module):
        raise _error(name, f"it returned {_describe_value(model)}. Return a torch.nn.Module")
    images = torch.zeros(CHECKED_ROWS, *image.shape, dtype=torch.uint8)
    given = f"images, uint8 {tuple(images.shape)}"
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    except Exception as error:
        problem = f"its network raised {_describe(error, module)}, for {given}. Correct it"
        raise _error(name, problem) from error
    expected = f"float32 {(CHECKED_ROWS, image.num_classes)}"
    if _describe_value(logits) != expected:
        problem = f"its network returned {_describe_value(logits)} for {given}"
        raise _error(name, f"{problem}. Return logits, {expected}")
    return model.train()


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name.partition(":")[0])
    except Exception as error:
        problem = f"its module cannot be imported: {_describe(error)}"
        raise _error(
            name, f"{problem}. Correct it, install what is missing, or run in the module's folder"
        ) from error


def _factory(module: ModuleType, name: str) -> Callable[[ImageSpec, Training], Any]:
    factory = getattr(module, name.partition(":")[2], None)
    if not callable(factory):
        problem = "its module has no function of this name"
        raise _error(name, f"{problem}. Name a function of image and settings")
    return factory  # type: ignore[no-any-return]


def _source_file(module: ModuleType, name: str) -> bytes:
    file = getattr(module, "__file__", None)
    if file is None:
        raise _error(name, "its module is in no file. Name the module that defines the function")
    return Path(file).read_bytes()


def _error(name: str, problem: str) -> SettingError:
    return SettingError(f"--train.model is {name!r}: {problem}.")


def _describe(error: Exception, module: ModuleType | None = None) -> str:
    """Return an error's kind, the first line of its message, and its line in the module."""
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
    file = getattr(module, "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{text} ({Path(str(file)).name}, line {lines[-1]})" if lines else text


def _describe_value(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"
