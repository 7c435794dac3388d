"""KServe's REST client: python kserve_rest.py URL VERSION KEY EXPECTED, in its own venv.

EXPECTED is a file of numpy's with `images`, and the `probabilities` and `prediction` of each.
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
    found = InferInput("image", list(images.shape), "UINT8")
    found.set_data_from_numpy(images, binary_data=binary)
    return found


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
