"""Triton's gRPC client: python triton_grpc.py HOST:PORT VERSION KEY EXPECTED, in its own venv.

EXPECTED is a file of numpy's with `images`, and the `probabilities` and `prediction` of each.
"""

import sys

import numpy as np
import tritonclient.grpc as triton

address, version, key, file = sys.argv[1:]
expected = np.load(file)
images = expected["images"]
headers = {"authorization": f"Bearer {key}"}


def tensor(values: np.ndarray) -> triton.InferInput:
    found = triton.InferInput("image", list(values.shape), "UINT8")
    found.set_data_from_numpy(values)
    return found


def refused(model: str, values: np.ndarray, headers: dict[str, str]) -> str:
    try:
        client.infer(model, [tensor(values)], headers=headers)
    except triton.InferenceServerException as error:
        return str(error.status())
    raise AssertionError("was answered")


with triton.InferenceServerClient(address) as client:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("stripes", headers=headers)
    assert "binary_tensor_data" in client.get_server_metadata(headers=headers).extensions
    model = client.get_model_metadata("stripes", headers=headers)
    assert list(model.versions) == [version]
    assert [list(given.shape) for given in model.inputs] == [[-1, *images.shape[1:]]]

    result = client.infer("stripes", [tensor(images)], request_id="7", headers=headers)
    for name in ("probabilities", "prediction"):
        np.testing.assert_array_equal(result.as_numpy(name), expected[name])
    assert result.get_response().id == "7"

    best = triton.InferRequestedOutput("probabilities", class_count=1)
    names = client.infer("stripes", [tensor(images)], outputs=[best], headers=headers)
    found = [int(name.decode().split(":")[1]) for name in names.as_numpy("probabilities")[:, 0]]
    assert found == expected["prediction"].tolist()

    many = np.zeros((5000, *images.shape[1:]), np.uint8)
    assert refused("stripes", images[:, :1], headers) == "StatusCode.INVALID_ARGUMENT"
    assert refused("other", images, headers) == "StatusCode.NOT_FOUND"
    assert refused("stripes", many, headers) == "StatusCode.RESOURCE_EXHAUSTED"
    assert refused("stripes", images, {}) == "StatusCode.UNAUTHENTICATED"
