"""The binary form by itself, against the bytes that Triton's own client makes and reads."""

import json
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferResult

from service.client import AnswerError, AsyncClient, Client, FailedPrediction, Model, ProblemError
from service.client.open_inference import HEADER_LENGTH, Description, decode, encode, predictions
from tests.service.client.conftest import Ask
from tests.service.client.scripted import MODEL, Act, Handler, ScriptedServer, answer, problem

IMAGES = np.linspace(0, 1, 3 * 1 * 2 * 2, dtype=np.float32).reshape(3, 1, 2, 2)
METADATA = {
    "name": "mnist",
    "versions": ["abc"],
    "platform": "lgmguard_bundle",
    "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 2, 2]}],
    "outputs": [
        {"name": "class_index", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2], "parameters": {"columns": '["a", "b"]'}},
        {
            "name": "evidence_scores",
            "datatype": "FP32",
            "shape": [-1, 1],
            "parameters": {"columns": '["likelihood"]'},
        },
    ],
}
READY = answer(200, {"status": "ready", "model": MODEL})
TENSORS: dict[str, Any] = {
    "class_index": np.array([1, -1, 0]),
    "probabilities": np.array([[0.25, 0.75], [0, 0], [1, 0]], np.float32),
    "log_likelihood": np.array([-1, -2, -3], np.float32),
    "p_value": np.array([0.5, 0.25, 1], np.float32),
    "flagged": np.array([False, True, False]),
    "evidence_scores": np.array([[1], [2], [3]], np.float32),
    "evidence_p_values": np.array([[0.5], [0.25], [1]], np.float32),
}
DATATYPES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}


def body(tensors: dict[str, Any], version: str = "abc", name: str = "mnist") -> tuple[bytes, int]:
    """An answer as the protocol has it."""
    outputs = [
        {
            "name": name,
            "datatype": DATATYPES[str(values.dtype)],
            "shape": values.shape,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in tensors.items()
    ]
    header = json.dumps({"model_name": name, "model_version": version, "outputs": outputs}).encode()
    return header + b"".join(values.tobytes() for values in tensors.values()), len(header)


def inferred(tensors: dict[str, Any], version: str = "abc", name: str = "mnist") -> Act:
    content, length = body(tensors, version, name)

    def act(handler: Handler) -> None:
        answer(200, content, **{HEADER_LENGTH: str(length), "x-request-id": "r"})(handler)

    return act


@pytest.mark.parametrize("images", [IMAGES, (255 * IMAGES).astype(np.uint8)])
def test_requests_are_what_tritons_client_sends(images: Any) -> None:
    tensor = InferInput("images", list(images.shape), "UINT8" if images.dtype == np.uint8 else "FP32")
    tensor.set_data_from_numpy(images)
    expected, expected_length = InferenceServerClient.generate_request_body([tensor])
    found, length = encode(images)
    assert json.loads(found[:length]) == json.loads(expected[:expected_length])
    assert found[length:] == expected[expected_length:]


def test_answers_are_read_as_tritons_client_reads_them() -> None:
    content, length = body(TENSORS)
    theirs = InferResult.from_response_body(content, header_length=length)
    ours = decode(httpx.Response(200, headers={HEADER_LENGTH: str(length)}, content=content))
    assert ours.model == Model(name="mnist", version="abc")
    for name in TENSORS:
        np.testing.assert_array_equal(ours.tensors[name], theirs.as_numpy(name))


def test_tensors_become_predictions() -> None:
    content, length = body(TENSORS)
    outputs = decode(httpx.Response(200, headers={HEADER_LENGTH: str(length)}, content=content))
    first, withheld, last = predictions(outputs, Description.read(outputs.model, METADATA), count=3)
    assert (first.label, first.class_index, first.probability) == ("b", 1, 0.75)
    assert (withheld.label, withheld.class_index, withheld.probability) == (None, None, None)
    assert (withheld.flagged, withheld.p_value, withheld.log_likelihood) == (True, 0.25, -2)
    assert (last.label, last.flagged) == ("a", False)
    assert last.evidence["likelihood"].score == 3
    assert type(first.flagged) is bool
    assert type(first.class_index) is int


def test_an_array_is_one_binary_request(ask: Ask) -> None:
    with ScriptedServer(READY, answer(200, METADATA), inferred(TENSORS)) as server:
        found = ask(server.url, "predict", IMAGES, request_id="mine")
    assert [of.label for of in found.predictions] == ["b", None, "a"]
    assert found.models == (Model(name="mnist", version="abc"),)
    ready, metadata, infer = server.received
    assert (ready.path, metadata.path) == ("/readyz", "/v2/models/mnist/versions/abc")
    assert (infer.method, infer.path) == ("POST", "/v2/models/mnist/infer")
    assert infer.headers["x-request-id"] == "mine"
    length = int(infer.headers[HEADER_LENGTH])
    assert infer.body[length:] == IMAGES.tobytes()


def test_the_model_is_asked_about_once_and_again_when_another_answers(ask: Ask) -> None:
    one, other = inferred(TENSORS), inferred(TENSORS, "newer")
    relabelled = json.loads(json.dumps(METADATA).replace('\\"a\\"', '\\"A\\"'))
    script = (READY, answer(200, METADATA), one, one, other, answer(200, relabelled), other)
    with ScriptedServer(*script) as server:
        found = ask(
            server.url,
            "predict",
            np.concatenate([IMAGES] * 4),
            max_instances=3,
            **({"max_concurrency": 1} if "async" in ask.__name__ else {}),
        )
    assert [of.label for of in found.predictions[2::3]] == ["a", "a", "A", "A"]
    assert [model.version for model in found.models] == ["abc", "newer"]
    assert len(server.received) == 7


def test_arrays_of_another_shape_fail_in_their_places(ask: Ask) -> None:
    wrong = np.zeros((1, 4, 4), np.float32)
    images = [IMAGES[0], wrong, IMAGES[1], IMAGES[2], wrong]
    with ScriptedServer(READY, answer(200, METADATA), inferred(TENSORS), READY) as server:
        options = {"max_concurrency": 1} if "async" in ask.__name__ else {}
        found = ask(server.url, "predict", images, **options).predictions
    assert [isinstance(of, FailedPrediction) for of in found] == [False, True, False, False, True]
    assert found[1].error.detail == "has shape (1, 4, 4); this model takes (1, 2, 2)"
    assert found[4].error.field == "images[4]"


def described(version: str, shape: tuple[int, ...]) -> tuple[Act, Act]:
    """/readyz and the metadata of a version that takes such images."""
    ready = {"model": {"name": "mnist", "version": version}}
    inputs = [{**METADATA["inputs"][0], "shape": [-1, *shape]}]
    return answer(200, ready), answer(200, {**METADATA, "inputs": inputs})


async def predict_in_turn(url: str, *batches: Any) -> list[Any]:
    async with AsyncClient(url) as client:
        return [await client.predict(images) for images in batches]


def in_turn(ask: Ask, url: str, *batches: Any) -> list[Any]:
    """By one client."""
    if "async" in ask.__name__:
        return anyio.run(predict_in_turn, url, *batches)
    with Client(url) as client:
        return list(map(client.predict, batches))


def test_another_shape_is_judged_once_its_version_is_active(ask: Ask) -> None:
    other = described("newer", (1, 4, 1))
    script = (READY, answer(200, METADATA), inferred(TENSORS), *other, inferred(TENSORS, "newer"))
    with ScriptedServer(*script) as server:
        _, found = in_turn(ask, server.url, IMAGES, IMAGES.reshape(3, 1, 4, 1))
    assert [of.label for of in found.predictions] == ["b", None, "a"]
    assert found.models == (Model(name="mnist", version="newer"),)


def test_a_model_that_has_gone_since_is_asked_for_by_its_successors_name(ask: Ask) -> None:
    gone = answer(404, problem(404, "unknown-model"))
    ready = answer(200, {"model": {"name": "digits", "version": "abc"}})
    successor = ready, answer(200, METADATA), inferred(TENSORS, name="digits")
    script = (READY, answer(200, METADATA), inferred(TENSORS), gone, *successor)
    with ScriptedServer(*script) as server:
        found = in_turn(ask, server.url, IMAGES, IMAGES)[1]
    assert [of.label for of in found.predictions] == ["b", None, "a"]
    assert [received.path for received in server.received[2:]] == [
        "/v2/models/mnist/infer",
        "/v2/models/mnist/infer",
        "/readyz",
        "/v2/models/digits/versions/abc",
        "/v2/models/digits/infer",
    ]


def test_a_refusal_that_names_every_image_is_their_values(ask: Ask) -> None:
    refusal = answer(422, problem(422, "invalid-input", **{f"images[{row}]": f"bad {row}" for row in range(3)}))
    with ScriptedServer(READY, answer(200, METADATA), refusal) as server:
        found = ask(server.url, "predict", IMAGES)
    assert [of.error.detail for of in found.predictions] == ["bad 0", "bad 1", "bad 2"]
    assert found.models == ()


def test_a_model_that_has_gone(ask: Ask) -> None:
    gone = answer(404, problem(404, "unknown-model"))
    with (
        ScriptedServer(READY, answer(200, METADATA), gone) as server,
        pytest.raises(ProblemError, match="unknown-model"),
    ):
        ask(server.url, "predict", IMAGES)


@pytest.mark.parametrize(
    "tensors",
    [
        {name: values[:2] for name, values in TENSORS.items()},
        {name: values for name, values in TENSORS.items() if name != "flagged"},
        {**TENSORS, "class_index": np.array([7, 0, 0])},
    ],
)
def test_tensors_that_do_not_fit_are_no_answer(ask: Ask, tensors: dict[str, Any]) -> None:
    with ScriptedServer(READY, answer(200, METADATA), inferred(tensors)) as server, pytest.raises(AnswerError):
        ask(server.url, "predict", IMAGES)
