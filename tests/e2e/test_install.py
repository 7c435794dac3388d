"""Each extra installs what its users need, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts.registry import promote
from pipeline.artifacts.storage import Storage
from tests.conftest import Artifacts
from tests.support.processes import runs_without_error
from tests.support.servers import served_in_thread

REPOSITORY = Path(__file__).parents[2]

PREDICT = """
import sys
import numpy as np
from serving.client import Client

with Client(sys.argv[1], model="bars") as client:
    predictions = client.predict(np.zeros((3, 12, 10), np.uint8))
print(predictions.prediction.shape)
"""


def test_the_client_alone_predicts_from_an_empty_environment(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    root = shutil.copytree(artifacts.root, tmp_path / "artifacts")
    promote(Storage(str(root)), artifacts.model.ref, "production")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    environment |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command: object) -> str:
        arguments = [str(argument) for argument in command]
        completed = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    source = tmp_path / "source"
    for path in ("pipeline", "serving"):
        shutil.copytree(REPOSITORY / path, source / path)
    for path in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / path, source)
    run(sys.executable, "-m", "venv", "venv")
    run(python, "-m", "pip", "install", "--quiet", source)
    installed = run(python, "-m", "pip", "list", "--format", "freeze")
    assert "numpy" in installed
    for package in ("torch", "ray", "pyarrow", "pydantic", "onnxruntime"):
        assert f"{package}=" not in installed
    with served_in_thread(root, "bars/production") as port:
        assert run(python, "-c", PREDICT, f"http://127.0.0.1:{port}") == "(3,)\n"


def test_the_server_needs_no_package_of_the_batch_side() -> None:
    blocked = ["torch", "onnx", "matplotlib", "jinja2", "rich", "pandas", "mlxtend"]
    assert runs_without_error(
        f"import sys; sys.modules |= dict.fromkeys({blocked}); "
        "import serving.app, serving.command_line"
    )


@pytest.mark.parametrize("platform", ["aarch64-unknown-linux-gnu", "aarch64-apple-darwin"])
def test_all_extras_resolve_on_arm(platform: str) -> None:
    packages = resolve(platform, "all", "sample")
    assert "onnxruntime" in packages
    assert "onnxruntime-gpu" not in packages


def test_the_server_on_a_gpu_has_cuda_without_torch() -> None:
    packages = resolve("x86_64-unknown-linux-gnu", "serve", "cuda")
    # What onnxruntime's CUDA provider loads, apart from the driver.
    libraries = ("cublas", "cuda-nvrtc", "cuda-runtime", "cudnn-cu13", "cufft", "curand")
    assert {f"nvidia-{library}" for library in libraries} <= packages.keys()
    assert packages["nvidia-cuda-runtime"].startswith("13.0.")
    assert "torch" not in packages


def resolve(platform: str, *extras: str) -> dict[str, str]:
    """Return the versions of the packages that pip would install for these extras."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header"]
    command += ["--no-annotate", str(REPOSITORY / "pyproject.toml")]
    command += [f"--extra={extra}" for extra in extras]
    command += ["--python-version", "3.11", "--python-platform", platform]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    pins = [line.partition(" ;")[0].split("==") for line in completed.stdout.splitlines()]
    return {name: version for name, version in pins}
