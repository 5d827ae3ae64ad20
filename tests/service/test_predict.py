import base64
import gzip
import json
import re
import zlib

import pytest
import torch

from model.image_set import to_unit
from service.schemas import PredictResponse

URL = "/v1/predict"


def encoded(file: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(file).decode()}


@pytest.fixture(scope="module")
def expected(digits_screener, digits_images):
    """What the library says of the first images, each alone."""
    return [digits_screener.screen(to_unit(digits_images[row : row + 1])) for row in range(16)]


def check_shape(response):
    """The answer has the documented fields and no others."""
    body = response.json()
    assert PredictResponse.model_validate(body).model_dump() == body


def check(prediction, verdicts, labels):
    class_index = int(verdicts.class_index)
    assert prediction["class_index"] == class_index
    assert prediction["label"] == labels[class_index]
    assert prediction["probability"] == pytest.approx(float(verdicts.probabilities.max()), rel=1e-4)
    assert prediction["log_likelihood"] == pytest.approx(float(verdicts.log_likelihood), rel=1e-4)
    assert prediction["p_value"] == pytest.approx(float(verdicts.p_value), rel=1e-4)
    assert prediction["flagged"] == bool(verdicts.flagged)
    assert set(prediction["evidence"]) == set(verdicts.evidence)
    for name, said in prediction["evidence"].items():
        assert said["score"] == pytest.approx(float(verdicts.evidence[name].score), rel=1e-4, abs=1e-4)
        assert said["p_value"] == pytest.approx(float(verdicts.evidence[name].p_value), rel=1e-4)


def test_a_raw_image_body(client, digit_files, expected, digits_screener):
    response = client.post(URL, content=digit_files[0], headers={"content-type": "image/png"})
    assert response.status_code == 200
    check_shape(response)
    body = response.json()
    assert body["model"] == {"name": digits_screener.name, "version": digits_screener.version}
    assert body["request_id"] == response.headers["x-request-id"]
    assert len(body["predictions"]) == 1
    check(body["predictions"][0], expected[0], digits_screener.labels)


def test_multipart_files_keep_their_order(client, digit_files, expected, digits_screener):
    files = [("image", (f"{row}.png", file)) for row, file in enumerate(digit_files)]
    predictions = client.post(URL, files=files).json()["predictions"]
    assert len(predictions) == 16
    for prediction, verdicts in zip(predictions, expected, strict=True):
        check(prediction, verdicts, digits_screener.labels)


@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"This is a multi-part message.\r\n", b"--\r\n\r\n"])
def test_multipart_may_begin_with_a_preamble(client, digit_files, expected, digits_screener, preamble):
    head = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="digit.png"\r\n\r\n'
    response = client.post(
        URL,
        content=preamble + head + digit_files[0] + b"\r\n--xyz--\r\nan epilogue",
        headers={"content-type": "multipart/form-data; boundary=xyz"},
    )
    check(response.json()["predictions"][0], expected[0], digits_screener.labels)


def test_json_of_nested_arrays_and_of_files_may_be_mixed(
    client, digit_files, digits_images, expected, digits_screener
):
    first, _, third = to_unit(digits_images[:3]).tolist()
    instances = [first, encoded(digit_files[1]), third]
    response = client.post(URL, json={"instances": instances})
    for prediction, verdicts in zip(response.json()["predictions"], expected[:3], strict=True):
        check(prediction, verdicts, digits_screener.labels)


def test_whole_numbers_in_json_are_numbers(client):
    black = torch.zeros(1, 8, 8, dtype=torch.int64).tolist()
    assert client.post(URL, json={"instances": [black]}).status_code == 200


def test_a_request_larger_than_a_batch_is_answered_whole(client, digits_images, expected, digits_screener):
    instances = to_unit(digits_images[:16]).tolist() * 3
    predictions = client.post(URL, json={"instances": instances}).json()["predictions"]
    assert len(predictions) == 48
    for row, prediction in enumerate(predictions):
        check(prediction, expected[row % 16], digits_screener.labels)


def test_content_type_may_carry_parameters_and_any_case(client, digits_images):
    content = json.dumps({"instances": to_unit(digits_images[:1]).tolist()})
    response = client.post(URL, content=content, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert response.status_code == 200


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(make_client, digit_files, encoding, compress):
    client = make_client(max_body_bytes=4096)
    headers = {"content-type": "image/png", "content-encoding": encoding}
    plain = client.post(URL, content=digit_files[0], headers={"content-type": "image/png"}).json()
    found = client.post(URL, content=compress(digit_files[0]), headers=headers).json()
    assert found["predictions"] == plain["predictions"]
    for body, status, code in (
        (compress(bytes(1_000_000)), 413, "body-too-large"),
        (digit_files[0], 400, "malformed-body"),
        (compress(digit_files[0])[:-1], 400, "malformed-body"),
    ):
        response = client.post(URL, content=body, headers=headers)
        assert response.status_code == status
        assert response.json()["type"].endswith(code)
    refused = client.post(URL, content=digit_files[0], headers={**headers, "content-encoding": "br"})
    assert refused.status_code == 415
    assert refused.json()["errors"][0]["field"] == "content-encoding"


def test_a_bad_image_among_good_ones_fails_alone(client, digit_files, expected, digits_screener):
    files = [digit_files[0], b"not an image", digit_files[1], digit_files[2][:80]]
    response = client.post(URL, files=[("image", ("name", file)) for file in files])
    assert response.status_code == 200
    check_shape(response)
    first, second, third, fourth = response.json()["predictions"]
    check(first, expected[0], digits_screener.labels)
    check(third, expected[1], digits_screener.labels)
    assert set(second) == set(fourth) == {"error"}
    assert second["error"]["field"] == "image[1]"
    assert "not an image of an allowed format" in second["error"]["detail"]
    assert fourth["error"]["field"] == "image[3]"
    assert "truncated" in fourth["error"]["detail"]


def test_several_bad_images_are_each_named(client):
    response = client.post(URL, json={"instances": [5, {"b64": "AAAA"}]})
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == ["instances[0]", "instances[1]"]


@pytest.mark.parametrize("policy", ["flag", "withhold"])
def test_policy_decides_whether_a_flagged_label_is_told(make_client, policy, abnormal_file, digit_files):
    client = make_client(policy=policy)
    files = [("image", ("abnormal.png", abnormal_file)), ("image", ("digit.png", digit_files[0]))]
    response = client.post(URL, files=files)
    check_shape(response)
    abnormal, digit = response.json()["predictions"]
    assert abnormal["flagged"]
    assert not digit["flagged"]
    assert digit["label"] is not None
    told = [abnormal[name] is not None for name in ("label", "class_index", "probability")]
    assert told == [policy == "flag"] * 3
    assert isinstance(abnormal["log_likelihood"], float)
    assert abnormal["evidence"]
    flagged = re.findall(
        r'lgm_class_images_total\{decision="flagged",label="(\w+)"\} 1.0', client.get("/metrics").text
    )
    assert flagged == [abnormal["label"] or "withheld"]


def test_two_apps_in_one_process_share_nothing(make_client, digit_files):
    one, other = make_client(), make_client()
    one.post(URL, content=digit_files[0], headers={"content-type": "image/png"})
    series = 'lgm_images_total{decision="accepted"} '
    assert f"{series}1.0" in one.get("/metrics").text
    assert f"{series}0.0" in other.get("/metrics").text
