"""Every kind of wrong byte: its status, the field it names, and the limit."""

import base64
import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

URL = "/v1/predict"
GOOD = np.full((1, 8, 8), 0.5).tolist()
BOUNDARY = "multipart/form-data; boundary=xyz"


def changed(value: object) -> list[list[list[object]]]:
    """A good image with one value changed."""
    image = np.full((1, 8, 8), 0.5).tolist()
    image[0][3][4] = value
    return image


def image_file(size: tuple[int, int] = (8, 8), mode: str = "L", form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


def noise_file() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 90).save(buffer, "PNG")
    return buffer.getvalue()


CUT_SHORT = noise_file()[:80]


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def check_problem(response, status: int, field: str, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["error"] == body["detail"] != ""
    assert body["title"]
    assert body["type"].startswith("urn:lgm-guard:problem:")
    assert body["request_id"] == response.headers["x-request-id"]
    assert [fault["field"] for fault in body["errors"]] == [field]
    assert detail in body["errors"][0]["detail"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text


@pytest.mark.parametrize(
    ("body", "status", "field", "detail"),
    [
        (b"", 400, "body", "not JSON"),
        (b"{", 400, "body", "not JSON"),
        (b"\xff\xfe", 400, "body", "not JSON"),
        (b"[" * 100_000, 400, "body", "recursion limit"),
        (b'{"instances": [' + b"9" * 100_000 + b"]}", 400, "body", "out of range"),
        (b"[]", 422, "body", "must be an object"),
        (b"null", 422, "body", "must be an object"),
        (b"{}", 422, "instances", "must be an array"),
        (b'{"instances": 5}', 422, "instances", "must be an array"),
        (b'{"instances": []}', 422, "instances", "send 1 to 256"),
        (b'{"instances": [], "inputs": []}', 422, "inputs", "unknown key"),
    ],
)
def test_json_that_is_not_a_request(client, body, status, field, detail):
    response = client.post(URL, content=body, headers={"content-type": "application/json"})
    check_problem(response, status, field, detail)


@pytest.mark.parametrize(
    ("instance", "detail"),
    [
        (5, "nested array of numbers"),
        ("text", "nested array of numbers"),
        (None, "nested array of numbers"),
        ([], "shape (0,)"),
        ([[]], "shape (1, 0)"),
        ([1.0, 2.0], "this model takes (1, 8, 8)"),
        (GOOD[0], "this model takes (1, 8, 8)"),
        (GOOD * 3, "shape (3, 8, 8); this model takes (1, 8, 8)"),
        ([GOOD[0][:7]], "shape (1, 7, 8); this model takes (1, 8, 8)"),
        ([[*GOOD[0][:7], [0.5]]], "differ in length"),
        ([GOOD], "not an array of numbers"),
        (changed("0.5"), "[0][3][4]"),
        (changed(None), "[0][3][4]"),
        (changed(True), "[0][3][4]"),
        (changed([0.5]), "[0][3][4]"),
        (changed({}), "[0][3][4]"),
        (changed(1.5), "values must lie in [0, 1]; the greatest is 1.5"),
        (changed(1 + 2**-52), "values must lie in [0, 1]; the greatest is 1.0000000000000002"),
        (changed(255), "values must lie in [0, 1]; divide by 255; the greatest is 255"),
        (changed(1e300), "values must lie in [0, 1]; divide by 255; the greatest is 1e+300"),
        (changed(10**400), "[0][3][4]"),
        (changed(-0.001), "values must lie in [0, 1]; the least is -0.001"),
        (changed(float("nan")), "must be finite"),
        (changed(float("inf")), "must be finite"),
        (changed(float("-inf")), "must be finite"),
        ({}, '{"b64": "..."}'),
        ({"b64": 5}, '{"b64": "..."}'),
        ({"b64": "AAAA", "more": 1}, '{"b64": "..."}'),
        ({"b64": "%%%"}, "not base64"),
        ({"b64": "A"}, "not base64"),
        ({"b64": "é"}, "not base64"),
        ({"b64": ""}, "not an image of an allowed format"),
        (b64(b"plain text"), "not an image of an allowed format"),
        (b64(CUT_SHORT), "truncated or damaged"),
        (b64(image_file((9, 8))), "9 x 8 pixels; this model takes 8 x 8"),
        (b64(image_file(mode="I;16")), "8 bits a channel"),
    ],
)
def test_an_instance_that_is_not_an_image(client, instance, detail):
    content = json.dumps({"instances": [instance]})
    response = client.post(URL, content=content, headers={"content-type": "application/json"})
    check_problem(response, 422, "instances[0]", detail)
    beside = json.dumps({"instances": [GOOD, instance]})
    response = client.post(URL, content=beside, headers={"content-type": "application/json"})
    assert response.status_code == 200
    good, bad = response.json()["predictions"]
    assert "label" in good
    assert bad["error"]["field"] == "instances[1]"
    assert detail in bad["error"]["detail"]


def test_too_many_instances(make_client):
    client = make_client(max_instances=2)
    check_problem(client.post(URL, json={"instances": [GOOD] * 3}), 422, "instances", "the limit is 2")
    files = [("image", ("a.png", image_file()))] * 3
    check_problem(client.post(URL, files=files), 422, "image", "the limit is 2")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "not an image of an allowed format"),
        (b"<svg/>", "not an image of an allowed format"),
        (CUT_SHORT, "truncated or damaged"),
        (image_file((28, 28)), "28 x 28 pixels; this model takes 8 x 8"),
        (image_file(form="ICO"), "not an image of an allowed format"),
    ],
)
def test_a_raw_body_that_is_not_an_image(client, content, detail):
    response = client.post(URL, content=content, headers={"content-type": "image/png"})
    check_problem(response, 422, "body", detail)


@pytest.mark.parametrize(
    ("side", "detail"), [(2_000, "2000 x 2000 pixels; the limit is 10000"), (20_000, "more than 10000 pixels")]
)
def test_an_image_of_too_many_pixels_is_refused_before_decoding(make_client, side, detail):
    client = make_client(max_pixels=10_000)
    bomb = image_file((side, side), mode="1")
    response = client.post(URL, content=bomb, headers={"content-type": "image/png"})
    check_problem(response, 422, "body", detail)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "nonsense", "é"])
def test_a_content_type_that_is_not_taken(client, content_type):
    response = client.post(URL, content=b"x", headers={b"content-type": content_type.encode()})
    check_problem(response, 415, "content-type", "image/* (an image file), multipart/form-data")


@pytest.mark.parametrize(
    ("content_type", "content", "status", "field", "detail"),
    [
        ("multipart/form-data", b"", 400, "content-type", "boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, b"", 400, "content-type", "70 bytes"),
        (BOUNDARY, b"", 400, "body", "last boundary"),
        (BOUNDARY, b"garbage", 400, "body", "not multipart/form-data"),
        (BOUNDARY, b"--xyz--\r\n", 422, "image", "send 1 to 256"),
        (
            BOUNDARY,
            b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\ncut',
            400,
            "body",
            "last boundary",
        ),
        (
            BOUNDARY,
            b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--xyz--\r\n',
            422,
            "image",
            "must be a file",
        ),
        (
            BOUNDARY,
            b'--xyz\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nx\r\n--xyz--\r\n',
            422,
            "photo",
            "field 'image'",
        ),
        (BOUNDARY, b"--xyz\r\nContent-Type: image/png\r\n\r\nx\r\n--xyz--\r\n", 400, "body", "Field name not found"),
        (BOUNDARY, b"--xyz\r\n" + b"A: b\r\n" * 100 + b"\r\nx\r\n--xyz--\r\n", 400, "body", "header"),
    ],
)
def test_a_form_that_is_not_one(client, content_type, content, status, field, detail):
    response = client.post(URL, content=content, headers={"content-type": content_type})
    check_problem(response, status, field, detail)


def chunks(size: int, number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield b"x" * size


@pytest.mark.parametrize("make_body", [lambda: b"x" * 5000, lambda: chunks(100, 50)], ids=["announced", "chunked"])
@pytest.mark.parametrize("content_type", ["image/png", "application/json", BOUNDARY])
def test_a_body_over_the_limit(
    make_client: Callable[..., TestClient], make_body: Callable[[], bytes], content_type: str
):
    client = make_client(max_body_bytes=4096)
    response = client.post(URL, content=make_body(), headers={"content-type": content_type})
    check_problem(response, 413, "body", "more than 4096 bytes")
    assert client.post(URL, content=image_file(), headers={"content-type": "image/png"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", URL, 405), ("PUT", "/", 405)]
)
def test_unknown_routes_and_methods_are_problems_too(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert isinstance(response.json()["error"], str)
    assert status == 404 or response.headers["allow"]


def test_all_methods_of_a_path_are_told(client):
    assert client.put("/v1/quarantine/1").headers["allow"] == "DELETE, GET, PATCH"


@given(content=st.binary(max_size=300), content_type=st.sampled_from(["image/png", "application/json", BOUNDARY]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_it(client, content, content_type):
    response = client.post(URL, content=content, headers={"content-type": content_type})
    assert 400 <= response.status_code < 500


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), form=st.sampled_from(["PNG", "GIF", "BMP", "WEBP"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damaged_image_breaks_it(client, position, byte, form):
    data = bytearray(image_file(form=form))
    data[position % len(data)] = byte
    response = client.post(URL, content=bytes(data), headers={"content-type": "image/*"})
    assert response.status_code in (200, 422)


DAMAGE = st.tuples(st.integers(0, 10_000), st.integers(0, 255))
WHOLE = [
    (image_file(), "image/png"),
    (image_file(form="GIF"), "image/gif"),
    (json.dumps({"instances": [GOOD, b64(image_file())]}).encode(), "application/json"),
    (b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n--xyz--\r\n', BOUNDARY),
]


def damaged(whole: tuple[bytes, str], damages: list[tuple[int, int]], end: int) -> tuple[bytes, str]:
    data = bytearray(whole[0])
    for position, byte in damages:
        data[position % len(data)] = byte
    return bytes(data[: end % (len(data) + 1)]), whole[1]


@pytest.mark.slow
@given(
    sent=st.builds(damaged, st.sampled_from(WHOLE), st.lists(DAMAGE, max_size=4), st.integers(0, 10_000))
    | st.tuples(st.binary(max_size=400), st.sampled_from([content_type for _, content_type in WHOLE]))
)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_malformed_bodies_break_nothing(client, sent):
    content, content_type = sent
    response = client.post(URL, content=content, headers={"content-type": content_type})
    assert response.status_code in (200, 400, 415, 422)
