"""Call the server with KServe's REST client, which has its own venv.

    python kserve_rest.py URL VERSION KEY EXPECTED

EXPECTED is an .npz file with `images`, and their `probabilities` and `prediction`.
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, _, key, file = sys.argv[1:]
expected = np.load(file)
images = expected["images"]
headers = {"authorization": f"Bearer {key}"}


def tensor(binary: bool) -> InferInput:
    infer_input = InferInput("image", list(images.shape), "UINT8")
    infer_input.set_data_from_numpy(images, binary_data=binary)
    return infer_input


async def main() -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "stripes", headers=headers)
    for binary in (False, True):
        request = InferRequest("stripes", [tensor(binary)], request_id="7")
        reply = await client.infer(url, request, model_name="stripes", headers=headers)
        assert reply.id == "7"
        for output in reply.outputs:
            np.testing.assert_array_equal(output.as_numpy(), expected[output.name])


asyncio.run(main())
