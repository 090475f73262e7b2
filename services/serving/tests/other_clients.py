"""Asks a server with the client libraries of other servers, and prints what they got as JSON.

Runs in an environment of its own (`make .venv-clients/.installed`), as `python other_clients.py
LIBRARY HTTP_PORT GRPC_PORT`. Both libraries bring the same gRPC messages, so each needs a process.
The model has the columns hour (FP64), day and late (INT64), and one output.
"""

import asyncio
import json
import sys

import numpy as np

NAME = "flights"
ROWS = [[1.5, 2, 0], [2.5, 3, 1]]
COLUMNS = {"hour": ("FP64", np.float64), "day": ("INT64", np.int64), "late": ("INT64", np.int64)}
VALUES = {
    "BOOL": (np.bool_, [True, False]),
    "INT8": (np.int8, [-(2**7), 2**7 - 1]),
    "INT16": (np.int16, [-(2**15), 2**15 - 1]),
    "INT32": (np.int32, [-(2**31), 2**31 - 1]),
    "INT64": (np.int64, [-(2**63), 2**63 - 1]),
    "UINT8": (np.uint8, [0, 2**8 - 1]),
    "UINT16": (np.uint16, [0, 2**16 - 1]),
    "UINT32": (np.uint32, [0, 2**32 - 1]),
    "UINT64": (np.uint64, [0, 2**64 - 1]),
    "FP16": (np.float16, [0.1, -65504.0]),
    "FP32": (np.float32, [0.1, -(2.0**100)]),
    "FP64": (np.float64, [0.1, -1e300]),
    "BYTES": (np.object_, ["é", "a\nb"]),
}


def triton_inputs(module):
    """Make the inputs of one of tritonclient's two modules."""
    inputs = []
    for at, (name, (datatype, dtype)) in enumerate(COLUMNS.items()):
        tensor = module.InferInput(name, [len(ROWS), 1], datatype)
        inputs.append((tensor, np.array([[row[at]] for row in ROWS], dtype=dtype)))
    return inputs


def ask_triton_http(port):
    """Ask over HTTP, with bytes and with JSON both ways."""
    import tritonclient.http as module  # noqa: PLC0415

    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready(NAME),
        "server": client.get_server_metadata()["name"],
        "model": client.get_model_metadata(NAME),
    }
    for binary in (True, False):
        inputs = []
        for tensor, data in triton_inputs(module):
            tensor.set_data_from_numpy(data, binary_data=binary)
            inputs.append(tensor)
        outputs = [module.InferRequestedOutput("output-1", binary_data=binary)]
        answer = client.infer(NAME, inputs, outputs=outputs, request_id="7")
        assert answer.get_response()["id"] == "7"
        found[f"binary {binary}"] = answer.as_numpy("output-1").ravel().tolist()
    whole = client.infer(NAME, inputs)
    found["all outputs"] = whole.as_numpy("output-1").ravel().tolist()
    found["refused"] = refusal(lambda: client.infer(NAME, inputs[:1]))
    return found


def ask_triton_grpc(port):
    """Ask over gRPC, where it always sends bytes."""
    import tritonclient.grpc as module  # noqa: PLC0415

    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    inputs = []
    for tensor, data in triton_inputs(module):
        tensor.set_data_from_numpy(data)
        inputs.append(tensor)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready(NAME),
        "server": client.get_server_metadata().name,
        "inputs": [tensor.name for tensor in client.get_model_metadata(NAME).inputs],
        "binary": client.infer(NAME, inputs).as_numpy("output-1").ravel().tolist(),
        "refused": refusal(lambda: client.infer(NAME, inputs[:1])),
        "unknown": refusal(lambda: client.infer("another", inputs)),
    }


def ask_triton_words(port):
    """Send strings over HTTP, as bytes and as JSON, and have them back."""
    import tritonclient.http as module  # noqa: PLC0415

    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    words = np.array([["é"], [""], ["a\nb"]], dtype=np.object_)
    found = {}
    for binary in (True, False):
        tensor = module.InferInput("word", [3, 1], "BYTES")
        tensor.set_data_from_numpy(words, binary_data=binary)
        outputs = [module.InferRequestedOutput("output-1", binary_data=binary)]
        answer = client.infer(NAME, [tensor], outputs=outputs).as_numpy("output-1").ravel()
        found[f"binary {binary}"] = [
            word.decode() if isinstance(word, bytes) else word for word in answer
        ]
    return found


def ask_triton_datatypes(http_port, grpc_port):
    """Send the ends of every datatype to a model that gives them back, by every way there is."""
    import tritonclient.grpc  # noqa: PLC0415
    import tritonclient.http  # noqa: PLC0415

    http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{http_port}")
    grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    found = {}
    for datatype, (dtype, values) in VALUES.items():
        sent = np.array([[value] for value in values], dtype=dtype)
        for way in ("bytes", "bytes, then JSON", "JSON, then bytes", "JSON"):
            tensor = tritonclient.http.InferInput("x", [2, 1], datatype)
            tensor.set_data_from_numpy(sent, binary_data=way.startswith("bytes"))
            wanted = tritonclient.http.InferRequestedOutput("output-1", way.endswith("bytes"))
            answer = http.infer(NAME, [tensor], outputs=[wanted]).as_numpy("output-1")
            found[f"{datatype}, {way}"] = differs(sent, answer)
        tensor = tritonclient.grpc.InferInput("x", [2, 1], datatype)
        tensor.set_data_from_numpy(sent)
        answer = grpc.infer(NAME, [tensor]).as_numpy("output-1")
        found[f"{datatype}, gRPC"] = differs(sent, answer)
    return found


def differs(sent, answer):
    """Say in what an array that came back is another one; nothing if it is the same."""
    values = [item.decode() if isinstance(item, bytes) else item for item in answer.ravel()]
    told = (str(answer.dtype), answer.shape, values)
    is_same = (answer.dtype, answer.shape, values) == (sent.dtype, sent.shape, list(sent.ravel()))
    return "" if is_same else repr(told)


def refusal(ask):
    """Give the words with which a request is refused."""
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    try:
        ask()
    except InferenceServerException as error:
        return error.message()
    return ""


def kserve_request(kserve):
    """Make a request of KServe's library."""
    inputs = []
    for at, (name, (datatype, _)) in enumerate(COLUMNS.items()):
        data = [row[at] for row in ROWS]
        inputs.append(kserve.InferInput(name, [len(ROWS), 1], datatype, data))
    return kserve.InferRequest(model_name=NAME, infer_inputs=inputs)


async def ask_kserve_rest(port):
    """Ask with KServe's REST client."""
    import kserve  # noqa: PLC0415

    base = f"http://127.0.0.1:{port}"
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    answer = await client.infer(base, kserve_request(kserve), model_name=NAME)
    return {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base) and await client.is_model_ready(base, NAME),
        "predictions": list(np.ravel(answer.outputs[0].data)),
    }


async def ask_kserve_grpc(port):
    """Ask with KServe's gRPC client."""
    import kserve  # noqa: PLC0415

    client = kserve.InferenceGRPCClient(f"127.0.0.1:{port}")
    answer = await client.infer(kserve_request(kserve))
    return {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready() and await client.is_model_ready(NAME),
        "predictions": [float(value) for value in np.ravel(answer.outputs[0].as_numpy())],
    }


def main(library, http_port, grpc_port):
    """Ask by both protocols."""
    if library == "words":
        found = ask_triton_words(http_port)
    elif library == "datatypes":
        found = ask_triton_datatypes(http_port, grpc_port)
    elif library == "triton":
        found = {"http": ask_triton_http(http_port), "grpc": ask_triton_grpc(grpc_port)}
    else:
        found = {
            "http": asyncio.run(ask_kserve_rest(http_port)),
            "grpc": asyncio.run(ask_kserve_grpc(grpc_port)),
        }
    sys.stdout.write(json.dumps(found))


main(*sys.argv[1:])
