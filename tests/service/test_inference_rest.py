"""The Open Inference Protocol over REST: its routes, its answers in both forms, and every wrong request's 4xx."""

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.image_set import to_unit
from service.inference_protocol.outputs import DTYPES, OUTPUTS
from service.inference_protocol.schemas import InferenceResponse, ModelMetadata
from tests.service.conftest import workers_held

URL = "/v2/models/digits/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[:12].numpy()


@pytest.fixture(scope="module")
def expected(digits_screener, images):
    """What the library says of the images, by the protocol's names."""
    verdicts = digits_screener.screen(to_unit(torch.from_numpy(images)))
    evidence = verdicts.evidence.values()
    return {
        "class_index": verdicts.class_index.numpy(),
        "probabilities": verdicts.probabilities.numpy(),
        "log_likelihood": verdicts.log_likelihood.numpy(),
        "p_value": verdicts.p_value.numpy(),
        "flagged": verdicts.flagged.numpy(),
        "evidence_scores": np.stack([said.score.numpy() for said in evidence], axis=1),
        "evidence_p_values": np.stack([said.p_value.numpy() for said in evidence], axis=1),
    }


def request_of(images: np.ndarray, **changed: Any) -> dict[str, Any]:
    """A JSON request; `data` and the like change its input."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [{**tensor, **changed}]}


def binary_request(images: np.ndarray, **members: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose tensor follows the JSON; members are added to the JSON."""
    request = request_of(images, parameters={"binary_data_size": images.nbytes})
    del request["inputs"][0]["data"]
    header = json.dumps({**request, **members}).encode()
    return header + images.tobytes(), {LENGTH: str(len(header))}


def read(response) -> dict[str, np.ndarray]:
    """The outputs of an answer in either form, by a reader of the protocol's text."""
    assert response.status_code == 200, response.text
    header_length = int(response.headers.get(LENGTH, len(response.content)))
    content, rest = json.loads(response.content[:header_length]), response.content[header_length:]
    InferenceResponse.model_validate(content)
    outputs = {}
    for output in content["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if size := output.get("parameters", {}).get("binary_data_size"):
            values, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        else:
            values = np.array(output["data"], dtype)
        outputs[output["name"]] = values.reshape(output["shape"])
    assert rest == b""
    return outputs


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rows: slice = slice(None)) -> None:
    assert list(found) == list(OUTPUTS)
    for name, values in expected.items():
        assert found[name].dtype == DTYPES[OUTPUTS[name].datatype]
        assert found[name].shape == values[rows].shape
        rounding = 1e-4 if name == "evidence_scores" else 1e-6  # a score near zero is a difference of larger terms
        np.testing.assert_allclose(found[name], values[rows], rtol=1e-4, atol=rounding, err_msg=name)


def check_problem(response, status: int, field: str, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert isinstance(body["error"], str)
    assert body["errors"][0]["field"] == field
    assert detail in body["errors"][0]["detail"]


def test_server_and_health(client):
    assert client.get("/v2").json() == {
        "name": "lgm-guard",
        "version": client.get("/").json()["version"],
        "extensions": ["binary_tensor_data"],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_model_and_its_version_tell_their_tensors(client, digits_screener):
    version = digits_screener.version
    found = client.get("/v2/models/digits").json()
    assert client.get(f"/v2/models/digits/versions/{version}").json() == found
    metadata = ModelMetadata.model_validate(found)
    assert (metadata.name, metadata.versions) == ("digits", [version])
    assert metadata.parameters == {"false_alarm_rate": digits_screener.false_alarm_rate}
    (images,) = metadata.inputs
    assert (images.name, images.datatype, images.shape) == ("images", "FP32", [-1, 1, 8, 8])
    assert images.parameters["datatypes"] == "FP32,UINT8"
    outputs = {output.name: output for output in metadata.outputs}
    assert list(outputs) == list(OUTPUTS)
    assert outputs["probabilities"].shape == [-1, 10]
    assert json.loads(str(outputs["probabilities"].parameters["columns"])) == list(digits_screener.labels)
    assert json.loads(str(outputs["evidence_scores"].parameters["columns"])) == list(digits_screener.detectors)
    for path in ("ready", f"versions/{version}/ready"):
        assert client.get(f"/v2/models/digits/{path}").json() == {"name": "digits", "ready": True}


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize("model", ["mnist", "digits/versions/1", "x" * 500, "digits/versions/" + "y" * 500])
def test_unknown_models_and_versions(client, model, path):
    response = client.request("POST" if path == "/infer" else "GET", f"/v2/models/{model}{path}")
    assert response.status_code == 404
    assert response.json()["type"] == "urn:lgm-guard:problem:unknown-model"
    assert response.json()["error"].startswith("no model")
    assert len(response.json()["error"]) < 300


def test_not_ready_while_draining(make_client, images):
    client = make_client()
    client.app.state.runtime.draining = True
    for path in ("/v2/health/ready", "/v2/models/digits/ready"):
        response = client.get(path)
        assert response.status_code == 503
        assert isinstance(response.json()["error"], str)
    assert client.get("/v2/health/live").status_code == 200
    assert client.post(URL, json=request_of(images)).status_code == 200


def test_json_flat_and_nested_bytes_and_floats(client, images, expected):
    unit = to_unit(torch.from_numpy(images)).numpy()
    requests = [
        request_of(images),
        request_of(images, data=images.tolist()),
        request_of(images, datatype="FP32", data=unit.ravel().tolist()),
        request_of(images, datatype="FP32", data=unit.tolist()),
    ]
    for request in requests:
        response = client.post(URL, json=request)
        assert response.headers["content-type"] == "application/json"
        check(read(response), expected)


def test_binary_in_and_binary_out(client, images, expected):
    unit = to_unit(torch.from_numpy(images)).numpy()
    for array, datatype in ((images, "UINT8"), (unit, "FP32")):
        tensor = {"name": "images", "datatype": datatype, "shape": array.shape}
        tensor["parameters"] = {"binary_data_size": array.nbytes}
        for members in ({}, {"parameters": {"binary_data_output": True}}):
            body, headers = binary_request(array, inputs=[tensor], **members)
            response = client.post(URL, content=body, headers=headers)
            check(read(response), expected)
            assert (LENGTH in response.headers) == bool(members)


def test_a_version_answers_as_its_model_does(client, images, digits_screener):
    request = request_of(images)
    response = client.post(f"/v2/models/digits/versions/{digits_screener.version}/infer", json=request)
    assert response.json() == client.post(URL, json=request).json()
    assert response.json()["model_version"] == digits_screener.version


def test_only_the_outputs_asked_for_each_in_its_form(client, images, expected):
    outputs = [
        {"name": "flagged", "parameters": {"binary_data": True}},
        {"name": "probabilities", "parameters": {"binary_data": False}},
        {"name": "p_value"},
    ]
    for by_default, num_binary in ((False, 1), (True, 2)):
        members = {"outputs": outputs, "parameters": {"binary_data_output": by_default}}
        response = client.post(URL, json={**request_of(images), **members})
        found = read(response)
        assert list(found) == ["flagged", "probabilities", "p_value"]
        assert response.content.count(b"binary_data_size") == num_binary
        np.testing.assert_array_equal(found["flagged"], expected["flagged"])
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["", "7", "é" * 100])
def test_the_id_comes_back(client, images, name):
    assert client.post(URL, json={**request_of(images), "id": name}).json()["id"] == name
    assert "id" not in client.post(URL, json=request_of(images)).json()


def test_null_is_as_absent(client, images, expected):
    request = {**request_of(images, parameters=None), "id": None, "parameters": None, "outputs": None}
    check(read(client.post(URL, json=request)), expected)
    (output,) = read(client.post(URL, json={**request, "outputs": [{"name": "p_value", "parameters": None}]}))
    assert output == "p_value"


def test_what_says_that_there_is_no_sequence_says_nothing(client, images):
    for value in (0, "", False):
        parameters = {"sequence_id": value, "sequence_start": False, "sequence_end": False}
        assert client.post(URL, json={**request_of(images), "parameters": parameters}).status_code == 200


def test_a_request_larger_than_a_batch_keeps_its_order(client, images, expected):
    found = read(client.post(URL, json=request_of(np.concatenate([images, images[::-1]]))))
    check({name: values[:12] for name, values in found.items()}, expected)
    check({name: values[12:][::-1] for name, values in found.items()}, expected)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(client, images, expected, encoding, compress):
    body, headers = binary_request(images)
    check(read(client.post(URL, content=compress(body), headers={**headers, "content-encoding": encoding})), expected)
    body = json.dumps(request_of(images)).encode()
    check(read(client.post(URL, content=compress(body), headers={"content-encoding": encoding})), expected)


def test_compressed_bodies_that_are_not(make_client):
    client = make_client(max_body_bytes=4096)
    whole = gzip.compress(b"{}")
    for body, status, detail in [
        (gzip.compress(bytes(10_000_000)), 413, "more than 4096 bytes"),
        (gzip.compress(bytes(3_000_000)), 413, "more than 4096 bytes when decompressed"),
        (b"{}", 400, "not gzip"),
        (b"", 400, "not one whole gzip stream"),
        (whole[:-1], 400, "not one whole gzip stream"),
        (whole + b"x", 400, "not one whole gzip stream"),
    ]:
        response = client.post(URL, content=body, headers={"content-encoding": "gzip"})
        check_problem(response, status, "body", detail)
    response = client.post(URL, content=b"{}", headers={"content-encoding": "br"})
    check_problem(response, 415, "content-encoding", "br is not taken; send gzip, deflate or identity")


@pytest.mark.parametrize("timeout", [-1, 2**63, 10**400, 0.5, True, "1"])
def test_a_timeout_that_is_none(client, images, timeout):
    response = client.post(URL, json={**request_of(images), "parameters": {"timeout": timeout}})
    check_problem(response, 422, "parameters.timeout", "must be")


def test_a_flagged_image_is_withheld_where_the_policy_says_so(make_client, images, digits_screener):
    noise = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    batch = np.concatenate([images, noise])
    flagged = digits_screener.screen(to_unit(torch.from_numpy(batch))).flagged.numpy()
    assert 0 < flagged.sum() < len(batch)
    open_answer = read(make_client().post(URL, json=request_of(batch)))
    client = make_client(policy="withhold")
    for binary in (False, True):
        request = {**request_of(batch), "parameters": {"binary_data_output": binary}}
        found = read(client.post(URL, json=request))
        assert (found["class_index"][flagged] == -1).all()
        assert (found["probabilities"][flagged] == 0).all()
        for name in ("class_index", "probabilities"):
            np.testing.assert_array_equal(found[name][~flagged], open_answer[name][~flagged])
        for name in ("log_likelihood", "p_value", "flagged", "evidence_scores"):
            np.testing.assert_array_equal(found[name], open_answer[name])


GOOD = request_of(np.zeros((1, 1, 8, 8), np.uint8))
TENSOR = GOOD["inputs"][0]


@pytest.mark.parametrize(
    ("body", "status", "field", "detail"),
    [
        (b"", 400, "body", "Invalid JSON"),
        (b"{", 400, "body", "Invalid JSON"),
        (b"\xff\xfe", 400, "body", "Invalid JSON"),
        (b"[" * 100_000, 400, "body", "recursion limit"),
        (b"[]", 422, "body", "object"),
        (b"{}", 422, "inputs", "required"),
        ({"inputs": []}, 422, "inputs", "no input given"),
        ({"inputs": {}}, 422, "inputs", "valid array"),
        ({"inputs": [5]}, 422, "inputs[0]", "object"),
        ({"inputs": [{}]}, 422, "inputs[0].name", "required"),
        ({"inputs": [{}] * 100_000}, 422, "inputs[0].name", "required"),
        ({"inputs": [TENSOR, TENSOR]}, 422, "inputs[1].name", "given twice"),
        ({"inputs": [{**TENSOR, "name": "image"}]}, 422, "inputs[0].name", "unknown input 'image'"),
        ({"inputs": [{**TENSOR, "name": 5}]}, 422, "inputs[0].name", "valid string"),
        ({"inputs": [{**TENSOR, "datatype": "FP64"}]}, 422, "inputs[0].datatype", "send FP32 or UINT8"),
        ({"inputs": [{**TENSOR, "shape": []}]}, 422, "inputs[0].shape", "at least 1 item"),
        ({"inputs": [{**TENSOR, "shape": [1] * 9}]}, 422, "inputs[0].shape", "at most 8 items"),
        ({"inputs": [{**TENSOR, "shape": "1"}]}, 422, "inputs[0].shape", "valid array"),
        ({"inputs": [{**TENSOR, "shape": ["a"] * 100_000}]}, 422, "inputs[0].shape[0]", "valid integer"),
        ({"inputs": [{**TENSOR, "shape": [1.0, 1, 8, 8]}]}, 422, "inputs[0].shape[0]", "valid integer"),
        ({"inputs": [{**TENSOR, "shape": [True, 1, 8, 8]}]}, 422, "inputs[0].shape[0]", "valid integer"),
        ({"inputs": [{**TENSOR, "shape": [10**40, 1, 8, 8]}]}, 422, "inputs[0].shape", "images; this model takes"),
        ({"inputs": [{**TENSOR, "shape": [257, 1, 8, 8]}]}, 422, "inputs[0].shape", "n from 1 to 256"),
        ({"inputs": [{**TENSOR, "data": [0] * 63}]}, 422, "inputs[0].data", "63 elements"),
        ({"inputs": [{**TENSOR, "data": {}}]}, 422, "inputs[0].data", "valid array"),
        ({"inputs": [{**TENSOR, "data": None}]}, 422, "inputs[0]", "either data or parameters.binary_data_size"),
        ({"inputs": [{**TENSOR, "data": [0] * 63 + [256]}]}, 422, "images[0]", "the greatest is 256"),
        ({"inputs": [{**TENSOR, "parameters": {"a": []}}]}, 422, "inputs[0].parameters", "'a' must be a boolean"),
        ({**GOOD, "parameters": {"b": None}}, 422, "parameters", "'b' must be a boolean, a number or a string"),
        ({**GOOD, "parameters": {"c": {}}}, 422, "parameters", "'c' must be"),
        ({**GOOD, "parameters": []}, 422, "parameters", "object"),
        ({**GOOD, "parameters": {"binary_data_output": 1}}, 422, "parameters.binary_data_output", "true or false"),
        ({**GOOD, "parameters": {"timeout": -1}}, 422, "parameters.timeout", "microseconds"),
        ({**GOOD, "parameters": {"timeout": "1"}}, 422, "parameters.timeout", "microseconds"),
        ({**GOOD, "id": 5}, 422, "id", "valid string"),
        (
            {**GOOD, "outputs": [{"name": "label"}]},
            422,
            "outputs[0].name",
            "unknown output 'label'; there are class_",
        ),
        ({**GOOD, "outputs": [{"name": "flagged"}] * 2}, 422, "outputs[1].name", "asked for twice"),
        ({**GOOD, "outputs": [{}] * 100_000}, 422, "outputs[0].name", "required"),
        (
            {**GOOD, "outputs": [{"name": "p_value", "parameters": {"binary_data": 1}}]},
            422,
            "outputs[0].parameters.binary_data",
            "true or false",
        ),
        (
            {**GOOD, "outputs": [{"name": "p_value", "parameters": {"classification": 3}}]},
            422,
            "outputs[0].parameters.classification",
            "not offered",
        ),
        ({**GOOD, "parameters": {"sequence_id": 7}}, 422, "parameters.sequence_id", "sequences are not offered"),
        ({**GOOD, "parameters": {"sequence_id": "a"}}, 422, "parameters.sequence_id", "sequences are not offered"),
        ({**GOOD, "parameters": {"sequence_start": True}}, 422, "parameters.sequence_start", "not offered"),
        ({**GOOD, "parameters": {"sequence_end": True}}, 422, "parameters.sequence_end", "not offered"),
        (
            {"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "a"}}]},
            422,
            "inputs[0].parameters.shared_memory_region",
            "not offered",
        ),
    ],
)
def test_a_request_that_is_wrong(client, body, status, field, detail):
    content = body if isinstance(body, bytes) else json.dumps(body)
    check_problem(client.post(URL, content=content), status, field, detail)


@pytest.mark.parametrize(
    ("size", "length", "extra", "status", "field", "detail"),
    [
        (64, "999", b"", 400, LENGTH.lower(), "999 bytes, but the body has"),
        (64, "9" * 18, b"", 400, LENGTH.lower(), "but the body has"),
        (64, "9" * 5000, b"", 400, LENGTH.lower(), "is no number of bytes"),
        (64, "-1", b"", 400, LENGTH.lower(), "is no number of bytes"),
        (64, "٣", b"", 400, LENGTH.lower(), "is no number of bytes"),
        (64, "", b"", 400, LENGTH.lower(), "is no number of bytes"),
        (64, "0", b"", 400, "body", "Invalid JSON"),
        (64, None, b"x", 422, "body", "1 bytes more than the inputs' tensors take"),
        (63, None, b"", 422, "body", "1 bytes more"),
        (65, None, b"", 422, "inputs[0].parameters.binary_data_size", "65 bytes, but 64 are left in the body"),
        (65, None, b"x", 422, "inputs[0].data", "65 bytes; UINT8 of shape [1, 1, 8, 8] takes 64"),
        (10**30, None, b"", 422, "inputs[0].parameters.binary_data_size", "but 64 are left"),
        (-1, None, b"", 422, "inputs[0].parameters.binary_data_size", "must be a number of bytes"),
        (True, None, b"", 422, "inputs[0].parameters.binary_data_size", "must be a number of bytes"),
        ("64", None, b"", 422, "inputs[0].parameters.binary_data_size", "must be a number of bytes"),
    ],
)
def test_a_binary_tensor_that_does_not_fit(client, size, length, extra, status, field, detail):
    zeros = np.zeros((1, 1, 8, 8), np.uint8)
    tensor = {key: value for key, value in TENSOR.items() if key != "data"}
    body, headers = binary_request(zeros, inputs=[{**tensor, "parameters": {"binary_data_size": size}}])
    headers = headers if length is None else {LENGTH: length}
    encoded = {key: value.encode() for key, value in headers.items()}
    check_problem(client.post(URL, content=body + extra, headers=encoded), status, field, detail)


def test_data_in_json_and_behind_it(client):
    body, headers = binary_request(np.zeros((1, 1, 8, 8), np.uint8))
    both = {**TENSOR, "parameters": {"binary_data_size": 64}}
    header = json.dumps({"inputs": [both]}).encode()
    response = client.post(URL, content=header + bytes(64), headers={LENGTH: str(len(header))})
    check_problem(response, 422, "inputs[0]", "either data or parameters.binary_data_size")
    response = client.post(URL, content=body)
    check_problem(response, 400, "body", "Invalid JSON")
    assert client.post(URL, content=body, headers=headers).status_code == 200


def test_too_many_images_and_too_many_bytes(make_client, images):
    client = make_client(max_instances=2, max_body_bytes=4096)
    check_problem(client.post(URL, json=request_of(images[:3])), 422, "inputs[0].shape", "n from 1 to 2")
    check_problem(client.post(URL, json=request_of(np.zeros((99, 1, 8, 8)))), 413, "body", "more than 4096 bytes")


def test_every_bad_image_is_named_and_counted(make_client, images):
    client = make_client()
    array = np.full((3, 1, 8, 8), 0.5)
    array[0, 0, 0, 0], array[2, 0, 0, 0] = 7, float("nan")
    content = json.dumps(request_of(array, datatype="FP32"))
    problem = client.post(URL, content=content).json()
    assert [fault["field"] for fault in problem["errors"]] == ["images[0]", "images[2]"]
    assert 'lgm_images_total{decision="rejected"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("parameters", "headers"), [({"timeout": 20_000}, {}), ({}, {"x-deadline-ms": "20"})], ids=["parameter", "header"]
)
def test_a_callers_deadline_gives_up_earlier(make_client, images, parameters, headers):
    client = make_client()
    with workers_held(client):
        response = client.post(URL, json={**request_of(images), "parameters": parameters}, headers=headers)
    assert response.status_code == 504
    assert response.json()["error"] == "no answer before the deadline"
    assert client.post(URL, json={**request_of(images), "parameters": {"timeout": 0}}).status_code == 200


def test_routes_are_counted_by_template(make_client, images):
    client = make_client()
    client.post(URL, json=request_of(images))
    text = client.get("/metrics").text
    assert 'lgm_requests_total{route="/v2/models/{name}/infer",status="200"} 1.0' in text
    assert "digits/infer" not in text


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "timeout", "x"]), values, max_size=2
)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("images") | values,
        "datatype": st.sampled_from(["FP32", "UINT8", "BOOL"]) | values,
        "shape": st.sampled_from([[1, 1, 8, 8], [2, 1, 8, 8]]) | st.lists(st.integers(), max_size=5) | values,
    },
    optional={"data": st.lists(scalars, min_size=64, max_size=64) | values, "parameters": parameters},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | values},
    optional={
        "id": values,
        "parameters": parameters | values,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(list(OUTPUTS)) | values}), max_size=3)
        | values,
    },
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_survives(client: TestClient, content: bytes, headers: dict[str, str]) -> None:
    response = client.post(URL, content=content, headers=headers)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    assert response.status_code == 200 or isinstance(response.json()["error"], str)


@given(request=requests)
@FUZZ
def test_no_request_breaks_it(client, request):
    check_survives(client, json.dumps(request).encode(), {})


@given(header=requests.map(json.dumps) | st.text(max_size=30), rest=st.binary(max_size=130), shift=st.integers(-3, 3))
@FUZZ
def test_no_binary_body_breaks_it(client, header, rest, shift):
    encoded = header.encode()
    check_survives(client, encoded + rest, {LENGTH: str(len(encoded) + shift)})


@given(
    content=st.binary(max_size=200), length=st.none() | st.integers(-5, 250).map(str) | st.text("0 -٣abx", max_size=9)
)
@FUZZ
def test_no_bytes_break_it(client, content, length):
    check_survives(client, content, {} if length is None else {LENGTH: length.encode()})


@given(floats=st.lists(st.floats(width=32), min_size=64, max_size=64))
@FUZZ
def test_floats_are_judged_or_refused(client, floats):
    array = np.array(floats, np.float32).reshape(1, 1, 8, 8)
    tensor = {**TENSOR, "datatype": "FP32", "parameters": {"binary_data_size": 256}}
    del tensor["data"]
    body, headers = binary_request(array, inputs=[tensor])
    response = client.post(URL, content=body, headers=headers)
    inside = bool(((array >= 0) & (array <= 1)).all())
    assert response.status_code == (200 if inside else 422)
