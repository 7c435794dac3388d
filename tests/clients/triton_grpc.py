"""Call the server with Triton's gRPC client, which has its own venv.

    python triton_grpc.py HOST:PORT VERSION KEY EXPECTED

EXPECTED is an .npz file with `images`, and their `probabilities` and `prediction`.
"""

import sys

import numpy as np
import tritonclient.grpc as triton

address, version, key, file = sys.argv[1:]
expected = np.load(file)
images = expected["images"]
headers = {"authorization": f"Bearer {key}"}


def tensor(values: np.ndarray) -> triton.InferInput:
    infer_input = triton.InferInput("image", list(values.shape), "UINT8")
    infer_input.set_data_from_numpy(values)
    return infer_input


def refusal(model: str, values: np.ndarray, headers: dict[str, str]) -> str:
    """Return the status of a request that the server must refuse."""
    try:
        client.infer(model, [tensor(values)], headers=headers)
    except triton.InferenceServerException as error:
        return str(error.status())
    raise AssertionError("the request was not refused")


with triton.InferenceServerClient(address) as client:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("stripes", headers=headers)
    assert "binary_tensor_data" in client.get_server_metadata(headers=headers).extensions
    model = client.get_model_metadata("stripes", headers=headers)
    assert list(model.versions) == [version]
    assert [list(spec.shape) for spec in model.inputs] == [[-1, *images.shape[1:]]]

    result = client.infer("stripes", [tensor(images)], request_id="7", headers=headers)
    for name in ("probabilities", "prediction"):
        np.testing.assert_array_equal(result.as_numpy(name), expected[name])
    assert result.get_response().id == "7"

    best = triton.InferRequestedOutput("probabilities", class_count=1)
    result = client.infer("stripes", [tensor(images)], outputs=[best], headers=headers)
    names = result.as_numpy("probabilities")[:, 0]
    predictions = [int(name.decode().split(":")[1]) for name in names]
    assert predictions == expected["prediction"].tolist()

    many = np.zeros((5000, *images.shape[1:]), np.uint8)
    assert refusal("stripes", images[:, :1], headers) == "StatusCode.INVALID_ARGUMENT"
    assert refusal("other", images, headers) == "StatusCode.NOT_FOUND"
    assert refusal("stripes", many, headers) == "StatusCode.RESOURCE_EXHAUSTED"
    assert refusal("stripes", images, {}) == "StatusCode.UNAUTHENTICATED"
