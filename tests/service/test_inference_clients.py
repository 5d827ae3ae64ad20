"""The clients that users of other servers already have, unmodified, against a real server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from model.image_set import to_unit
from service.inference_protocol.outputs import OUTPUTS
from tests.server import TIMEOUT, Server

KSERVE = Path(__file__).with_name("kserve_calls.py")
TRITON = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(digits_bundle) -> Iterator[Server]:
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0", "--grpc-port", "0")
    try:
        server.await_ready()
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request, server):
    """tritonclient's module for a transport, and a client of it."""
    module = TRITON[request.param]
    address = server.url.removeprefix("http://") if request.param == "http" else server.grpc_address
    client = module.InferenceServerClient(address)
    yield module, client
    client.close()


@pytest.fixture(scope="module")
def images(digits_images):
    return to_unit(digits_images[:12]).numpy()


@pytest.fixture(scope="module")
def verdicts(digits_screener, images):
    return digits_screener.screen(torch.from_numpy(images))


def tensor(module, array: np.ndarray, datatype: str, name: str = "images", **options: object):
    made = module.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array, **options)
    return made


def check(result, verdicts) -> None:
    for name in ("class_index", "flagged"):
        np.testing.assert_array_equal(result.as_numpy(name), getattr(verdicts, name).numpy())
    for name in ("probabilities", "log_likelihood", "p_value"):
        np.testing.assert_allclose(result.as_numpy(name), getattr(verdicts, name).numpy(), rtol=1e-4, atol=1e-6)
    for column, said in enumerate(verdicts.evidence.values()):
        scores = result.as_numpy("evidence_scores")[:, column]
        np.testing.assert_allclose(scores, said.score.numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(result.as_numpy("evidence_p_values")[:, column], said.p_value.numpy(), rtol=1e-4)


def member(thing, name: str):
    """Of an answer's dictionary or message."""
    return thing[name] if isinstance(thing, dict) else getattr(thing, name)


def test_triton_asks_for_health_and_metadata(triton, digits_screener):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", digits_screener.version)
    assert list(member(client.get_server_metadata(), "extensions")) == ["binary_tensor_data"]
    metadata = client.get_model_metadata("digits", digits_screener.version)
    assert list(member(metadata, "versions")) == [digits_screener.version]
    (images,) = member(metadata, "inputs")
    assert (member(images, "name"), member(images, "datatype")) == ("images", "FP32")
    assert list(member(images, "shape")) == [-1, 1, 8, 8]
    assert [member(output, "name") for output in member(metadata, "outputs")] == list(OUTPUTS)


def test_triton_infers_with_all_defaults(triton, images, verdicts, digits_screener):
    module, client = triton
    result = client.infer("digits", [tensor(module, images, "FP32")], request_id="7")
    check(result, verdicts)
    response = result.get_response()
    assert member(response, "id") == "7"
    assert member(response, "model_version") == digits_screener.version


def test_triton_infers_bytes_by_version_for_named_outputs(triton, images, verdicts, digits_screener):
    module, client = triton
    pixels = np.round(images * 255).astype(np.uint8)
    wanted = [module.InferRequestedOutput(name) for name in ("flagged", "p_value")]
    result = client.infer(
        "digits", [tensor(module, pixels, "UINT8")], outputs=wanted, model_version=digits_screener.version
    )
    np.testing.assert_array_equal(result.as_numpy("flagged"), verdicts.flagged.numpy())
    np.testing.assert_allclose(result.as_numpy("p_value"), verdicts.p_value.numpy(), rtol=1e-4)
    assert result.as_numpy("probabilities") is None


def test_triton_sends_and_takes_json(server, images, verdicts):
    module = tritonclient.http
    with module.InferenceServerClient(server.url.removeprefix("http://")) as client:
        outputs = [module.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
        check(client.infer("digits", [tensor(module, images, "FP32", binary_data=False)], outputs=outputs), verdicts)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_compresses(server, images, verdicts, algorithm):
    module = tritonclient.http
    with module.InferenceServerClient(server.url.removeprefix("http://")) as client:
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        check(client.infer("digits", [tensor(module, images, "FP32")], **options), verdicts)
    module = tritonclient.grpc
    with module.InferenceServerClient(server.grpc_address) as client:
        check(client.infer("digits", [tensor(module, images, "FP32")], compression_algorithm=algorithm), verdicts)


def test_triton_many_requests_at_once_keep_their_answers(server, digits_screener, digits_images):
    module = tritonclient.http
    images = to_unit(digits_images[:64]).numpy()
    expected = digits_screener.screen(torch.from_numpy(images)).log_likelihood.numpy()
    with module.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8) as client:
        sent = [client.async_infer("digits", [tensor(module, image[None], "FP32")]) for image in images]
        found = np.concatenate([request.get_result().as_numpy("log_likelihood") for request in sent])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_triton_reads_the_errors(triton, images):
    module, client = triton
    good = tensor(module, images, "FP32")
    for model, inputs, message in [
        ("other", [good], "no model 'other'"),
        ("digits", [tensor(module, images, "FP32", name="image")], "unknown input 'image'"),
        ("digits", [tensor(module, images.astype(np.float64), "FP64")], "send FP32 or UINT8"),
        ("digits", [tensor(module, images[:, :, 1:], "FP32")], "this model takes [n, 1, 8, 8] with n from 1 to 256"),
        ("digits", [tensor(module, images * 2, "FP32")], "images[0]: values must lie in [0, 1]"),
    ]:
        with pytest.raises(InferenceServerException, match=re.escape(message)):
            client.infer(model, inputs)
    with pytest.raises(InferenceServerException, match="unknown output 'label'"):
        client.infer("digits", [good], outputs=[module.InferRequestedOutput("label")])
    with pytest.raises(InferenceServerException, match="sequences are not offered"):
        client.infer("digits", [good], sequence_id=7, sequence_start=True)


def test_kserve(server, images, verdicts, digits_screener):
    """In a process of its own: KServe and Triton put the same protobuf names into one pool."""
    command = [sys.executable, str(KSERVE), server.url, server.grpc_address, "digits"]
    finished = subprocess.run(
        command, input=json.dumps(images.tolist()), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["health"] == [True] * 6
    assert found["errors"] == [404, "NOT_FOUND"]
    assert list(found["answers"]) == ["REST JSON", "REST binary", "REST binary output", "gRPC typed", "gRPC raw"]
    for answer in found["answers"].values():
        assert set(answer) == set(OUTPUTS)
        assert answer["class_index"] == verdicts.class_index.tolist()
        assert answer["flagged"] == verdicts.flagged.tolist()
        np.testing.assert_allclose(answer["probabilities"], verdicts.probabilities.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer["log_likelihood"], verdicts.log_likelihood.numpy(), rtol=1e-4)
