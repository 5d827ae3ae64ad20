"""The quarantine through the whole app: what each door lets in, and what reviewers do with it."""

import base64
import io
import time

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.keys import Role
from service.quarantine import State
from service.quarantine.database import Database
from service.quarantine.files import write_image
from service.quarantine.keeping import Kept, keep
from service.quarantine.places import place_of
from service.quarantine.store import Store
from service.settings import load_settings
from tests.service.conftest import ready_client
from tests.service.quarantine.conftest import made_item, noise
from tests.service.test_security import bearer, keys, keys_path

__all__ = ["keys", "keys_path"]

URL = "/v1/quarantine"
PNG = {"content-type": "image/png"}
TIMEOUT = 60


@pytest.fixture(scope="module")
def client(settings, tmp_path_factory):
    """Of a service that keeps what it flags; tests find their own by its request id."""
    folder = tmp_path_factory.mktemp("state")
    with ready_client(load_settings(**{**settings.model_dump(), "state_folder": folder})) as client:
        yield client


@pytest.fixture
def desk(tmp_path):
    """A client of an app that has items to review and no model."""
    settings = load_settings(state_folder=tmp_path)
    place = place_of(settings)
    database = Database(place.database)
    batch = [Kept(made_item(noise(seed), minutes=seed), write_image(noise(seed))) for seed in range(3)]
    keep(database, Store(place.store), batch)
    database.close()
    app = create_app(settings)
    yield TestClient(app, base_url="http://localhost")
    app.state.runtime.ward.quarantine.close()


@pytest.fixture
def item(desk):
    return desk.get(URL).json()["items"][0]


def outcome(client, name: str) -> int:
    """Of the images chosen for quarantine."""
    value = client.app.state.runtime.metrics.registry.get_sample_value("lgm_quarantine_total", {"outcome": name})
    return int(value)


def await_kept(client, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while outcome(client, "kept") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def await_items(client, request_id: str, count: int) -> list[dict[str, object]]:
    """Those of one request, once there are so many."""
    deadline = time.monotonic() + TIMEOUT
    while len(items := client.get(URL, params={"request_id": request_id}).json()["items"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return items


def predict(client, file: bytes, **headers: str) -> httpx.Response:
    response = client.post("/v1/predict", content=file, headers={**PNG, **headers})
    assert response.status_code == 200
    return response


def pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture)


def test_what_is_flagged_is_kept_as_it_was_judged(client, abnormal_file, digit_files):
    said = [predict(client, file, **{"x-request-id": "r1"}).json() for file in (abnormal_file, digit_files[0])]
    (item,) = await_items(client, "r1", 1)
    (prediction,) = said[0]["predictions"]
    assert not said[1]["predictions"][0]["flagged"]
    assert prediction.items() <= item.items()
    assert said[0]["model"] == {"name": item["model_name"], "version": item["model_version"]}
    assert (item["why"], item["state"], item["principal"]) == ("flagged", "new", "testclient")
    image = client.get(f"{URL}/{item['id']}/image")
    assert image.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(image.content), pixels(abnormal_file))


def test_every_image_of_a_request_is_kept_in_its_own_row(client, abnormal_file, digit_files):
    files = [("image", file) for file in (digit_files[0], abnormal_file, digit_files[1], abnormal_file)]
    client.post("/v1/predict", files=files, headers={"x-request-id": "r2"}).raise_for_status()
    items = await_items(client, "r2", 2)
    assert len(items) == 2
    assert len({item["digest"] for item in items}) == 1


def test_a_label_that_is_withheld_is_kept(make_client, tmp_path, abnormal_file):
    client = make_client(state_folder=tmp_path, policy="withhold")
    assert predict(client, abnormal_file).json()["predictions"][0]["label"] is None
    infer(client, abnormal_file)
    await_kept(client, 2)
    one, two = client.get(URL).json()["items"]
    assert one["label"] == two["label"] != ""
    assert one["probability"] == two["probability"] > 0


def infer(client, file: bytes, **headers: str) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": pixels(file).ravel().tolist()}
    client.post("/v2/models/digits/infer", json={"inputs": [tensor]}, headers=headers).raise_for_status()


def test_the_inference_protocol_is_a_door_too(client, abnormal_file):
    infer(client, abnormal_file, **{"x-request-id": "r3"})
    (item,) = await_items(client, "r3", 1)
    image = client.get(f"{URL}/{item['id']}/image").content
    np.testing.assert_array_equal(pixels(image), pixels(abnormal_file))


def test_floats_between_levels_are_kept_to_the_bit(client, abnormal_file):
    image = pixels(abnormal_file) / 255 * 0.999
    given = {"json": {"instances": [[image.tolist()]]}, "headers": {"x-request-id": "r4"}}
    client.post("/v1/predict", **given).raise_for_status()
    (item,) = await_items(client, "r4", 1)
    assert item["media_type"] == "application/x-npy"
    kept = client.app.state.runtime.ward.quarantine.pixels(item["id"])
    np.testing.assert_array_equal(kept, image.astype(np.float32)[None])
    assert client.get(f"{URL}/{item['id']}/image").content.startswith(b"\x89PNG")


MODES = {
    "metadata": ({}, {"flagged": 1}, None),
    "sampled": ({"quarantine_sample_share": 1}, {"sampled": 3}, "image/png"),
    "all": ({}, {"all": 3}, "image/png"),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_keeps_what_it_says(make_client, tmp_path, abnormal_file, digit_files, mode):
    given, expected, media_type = MODES[mode]
    client = make_client(state_folder=tmp_path, quarantine=mode, **given)
    client.post("/v1/predict", files=[("image", file) for file in (abnormal_file, *digit_files[:2])])
    await_kept(client, sum(expected.values()))
    items = client.get(URL).json()["items"]
    assert [item["why"] for item in items] == [why for why, count in expected.items() for _ in range(count)]
    assert {item["media_type"] for item in items} == {media_type}


def test_a_sample_is_drawn_without_a_look_at_the_verdict(make_client, tmp_path, abnormal_file, digit_files):
    client = make_client(state_folder=tmp_path, quarantine="sampled", quarantine_sample_share=0.3, max_instances=512)
    files = [("image", file) for file in (abnormal_file, digit_files[0]) * 150]
    client.post("/v1/predict", files=files).raise_for_status()
    await_kept(client, 150)
    client.app.state.runtime.ward.writer.close(TIMEOUT)
    drawn = {
        flagged: sum(client.get(URL, params={"why": "sampled", "flagged": flagged}).json()["counts"].values())
        for flagged in (True, False)
    }
    for count in drawn.values():  # of 150 at 0.3; beyond these bounds once in ten thousand runs
        assert 23 <= count <= 69
    assert sum(client.get(URL).json()["counts"].values()) == 150 + drawn[False]


def test_off_keeps_nothing_and_says_so(tmp_path):
    client = TestClient(
        create_app(load_settings(state_folder=tmp_path / "state", quarantine="off")), base_url="http://localhost"
    )
    response = client.get(URL)
    assert response.status_code == 404
    assert "quarantine is off" in response.json()["detail"]
    assert not (tmp_path / "state").exists()


def test_a_review_names_what_it_was_decided_on(desk, item):
    url = f"{URL}/{item['id']}"
    etag = desk.get(url).headers["etag"]
    body = {"state": "abnormal", "reason": "a hand"}
    assert desk.patch(url, json=body).status_code == 428
    reviewed = desk.patch(url, json=body, headers={"if-match": etag})
    assert reviewed.status_code == 200
    members = ("state", "reason", "reviewer", "revision")
    assert [reviewed.json()[name] for name in members] == ["abnormal", "a hand", "testclient", 2]
    assert reviewed.headers["etag"] == desk.get(url).headers["etag"] != etag
    others = (etag, 'W/"2"', f"{etag}, W/{etag}", '"1,2"', "2", '"2x"', '"99999999999999999999"', '*, "1"', "")
    for other in others:
        assert desk.patch(url, json=body, headers={"if-match": other}).status_code == 412
    refused = desk.patch(url, json={"state": "new"}, headers={"if-match": reviewed.headers["etag"]})
    assert refused.status_code == 409
    lines = desk.get(url + "/audit").json()["lines"]
    assert [(line["who"], line["to_state"], line["reason"]) for line in lines] == [
        ("testclient", "abnormal", "a hand")
    ]
    counts = desk.get(URL, params={"state": "new"}).json()
    assert (len(counts["items"]), counts["counts"]["abnormal"]) == (2, 1)


@pytest.mark.parametrize("if_match", ["*", ' "7" ,"1"', 'W/"1", "1"'])
def test_any_revision_or_one_of_a_list_will_do(desk, item, if_match):
    url = f"{URL}/{item['id']}"
    reviewed = desk.patch(url, json={"state": "abnormal"}, headers={"if-match": if_match})
    assert (reviewed.status_code, reviewed.headers["etag"]) == (200, '"2"')
    assert desk.patch(f"{URL}/nobody", json={"state": "new"}, headers={"if-match": "*"}).status_code == 404


WRONG = {
    b"": 400,
    b"{": 400,
    b"[]": 422,
    b'{"state": "good"}': 422,
    b'{"state": "abnormal", "more": 1}': 422,
    b'{"state": "abnormal", "reason": 1}': 422,
    b'{"state": "abnormal", "reason": "\\u0000"}': 422,
    b'{"state": "abnormal", "reason": "\\ud800"}': 400,
    b'{"state": "abnormal", "reason": "%s"}' % (b"x" * 2001): 422,
}


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_other_reviews_are_refused_and_change_nothing(desk, item, body):
    url = f"{URL}/{item['id']}"
    response = desk.patch(url, content=body, headers={"if-match": '"1"'})
    assert response.status_code == WRONG[body]
    assert response.json()["errors"]
    assert desk.get(url).json() == item


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=good", "state"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("p_value_at_most=2", "p_value_at_most"),
        ("since=2030-01-01", "since"),
        ("digest=7", "digest"),
        ("stat=new", "stat"),
        ("label=%00", "label"),
        ("state=new&state=released", "state"),
        ("since=0001-01-01T00:00:00%2B14:00", "since"),
        ("until=9999-12-31T23:59:59-14:00", "until"),
    ],
)
def test_a_wrong_question_is_refused_by_its_field(desk, query, field):
    response = desk.get(f"{URL}?{query}")
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == [field]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["%00", "%00/audit", "%00/image", "nobody/audit"])
def test_what_is_no_id_is_unknown(desk, path):
    assert desk.get(f"{URL}/{path}").status_code == 404


def test_deleted_is_gone_but_for_the_audit(desk, item):
    url = f"{URL}/{item['id']}"
    assert desk.delete(url).status_code == 204
    assert [
        desk.request(method, url + path).status_code
        for method, path in (("GET", ""), ("GET", "/image"), ("DELETE", ""))
    ] == [404] * 3
    assert [line["action"] for line in desk.get(url + "/audit").json()["lines"]] == ["deleted"]


def test_who_may_do_what(make_client, tmp_path, keys, keys_path, abnormal_file):
    client = make_client(state_folder=tmp_path, api_keys=keys_path)
    predict(client, abnormal_file, **bearer(keys[Role.PREDICT]))
    await_kept(client, 1)
    for path in ("", "/7", "/7/image", "/7/audit"):
        assert client.get(URL + path, headers=bearer(keys[Role.PREDICT])).status_code == 403
    reviewer = bearer(keys[Role.REVIEW])
    (item,) = client.get(URL, headers=reviewer).json()["items"]
    assert item["principal"] == "predict-1"
    url = f"{URL}/{item['id']}"
    reviewed = client.patch(url, json={"state": "abnormal"}, headers={**reviewer, "if-match": '"1"'})
    assert reviewed.json()["reviewer"] == "review-1"
    assert client.delete(url, headers=reviewer).status_code == 403
    assert client.delete(url, headers=bearer(keys[Role.ADMIN])).status_code == 204


def test_what_waits_when_the_service_ends_is_kept(settings, tmp_path, abnormal_file):
    given = load_settings(**{**settings.model_dump(), "state_folder": tmp_path})
    with ready_client(given) as client:
        for _ in range(20):
            predict(client, abnormal_file)
    with ready_client(given) as client:
        assert client.get(URL).json()["counts"]["new"] == 20


def test_without_its_folder_it_predicts_and_counts_what_it_cannot_keep(make_client, tmp_path, abnormal_file):
    (tmp_path / "file").write_bytes(b"")
    client = make_client(state_folder=tmp_path / "file")
    predict(client, abnormal_file)
    response = client.get(URL)
    assert response.status_code == 503
    assert response.json()["type"].endswith("quarantine-unavailable")
    client.app.state.runtime.ward.writer.close(TIMEOUT)
    assert (outcome(client, "kept"), outcome(client, "failed")) == (0, 1)


def test_a_full_backlog_drops_and_counts(make_client, tmp_path, abnormal_file):
    """More in one request than may wait."""
    client = make_client(state_folder=tmp_path, quarantine_queue_capacity=3)
    encoded = {"b64": base64.b64encode(abnormal_file).decode()}
    client.post("/v1/predict", json={"instances": [encoded] * 8}).raise_for_status()
    await_kept(client, 3)
    assert outcome(client, "dropped") == 5
    assert client.get(URL).json()["counts"][State.NEW] == 3


def test_the_metrics_tell_how_much_there_is(client, abnormal_file):
    predict(client, abnormal_file, **{"x-request-id": "r5"})
    await_items(client, "r5", 1)
    registry = client.app.state.runtime.metrics.registry
    ward = client.app.state.runtime.ward
    deadline = time.monotonic() + TIMEOUT
    while registry.get_sample_value("lgm_quarantine_items", {"state": "new"}) != ward.quarantine.counts()[State.NEW]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert registry.get_sample_value("lgm_quarantine_bytes") > 0
    assert registry.get_sample_value("lgm_quarantine_queue_depth") == 0
