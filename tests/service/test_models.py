"""Versions side by side: activated and rolled back under load, a broken one refused while the old one serves on."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.cpus import available_cpus
from service.engine import Engine
from tests.bundles import changed, with_other_card, with_other_name, with_other_scores

URL = "/v1/models"
PNG = {"content-type": "image/png"}


def version_of(bundle: Path) -> str:
    return str(json.loads((bundle / "bundle.json").read_bytes())["version"])


@pytest.fixture
def models(digits_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    with_other_card(digits_bundle, folder / "second", "another card")
    return folder


@pytest.fixture
def client(make_client, models: Path) -> TestClient:
    return make_client(models=models)


@pytest.fixture
def first(digits_bundle: Path) -> str:
    return f"{URL}/digits/versions/{version_of(digits_bundle)}"


@pytest.fixture
def second(models: Path) -> str:
    return f"{URL}/digits/versions/{version_of(models / 'second')}"


def states(client: TestClient) -> list[str]:
    (model,) = client.get(URL).json()["models"]
    assert model["name"] == "digits"
    return sorted(version["state"] for version in model["versions"])


def served(client: TestClient, file: bytes) -> str:
    response = client.post("/v1/predict", content=file, headers=PNG)
    assert response.status_code == 200
    return f"{URL}/digits/versions/{response.json()['model']['version']}"


def test_what_there_is_is_told_with_its_state_and_figures(client, digits_bundle):
    body = client.get(URL).json()
    (model,) = body["models"]
    (active,) = [version for version in model["versions"] if version["state"] == "active"]
    assert active["version"] == version_of(digits_bundle)
    assert active["false_alarm_rate"] == 0.05
    assert active["accuracy"] > 0.8
    assert body["refused"] == {}
    assert states(client) == ["active", "available"]


def test_activation_and_rollback(client, first, second, digit_files):
    assert served(client, digit_files[0]) == first
    assert client.post(f"{URL}/digits/rollback").status_code == 409
    assert client.post(f"{second}/activate").json()["version"] == second.rsplit("/", 1)[1]
    assert served(client, digit_files[0]) == second
    assert states(client) == ["active", "loaded"]
    assert f'version="{second.rsplit("/", 1)[1]}"}} 1.0' in client.get("/metrics").text
    assert client.get("/readyz").json()["model"]["version"] == second.rsplit("/", 1)[1]
    for expected in (first, second):
        assert client.post(f"{URL}/digits/rollback").status_code == 200
        assert served(client, digit_files[0]) == expected


def test_a_version_can_be_loaded_beside_the_active_one_and_unloaded(client, first, second, digit_files):
    assert client.post(f"{second}/load").status_code == 200
    assert states(client) == ["active", "loaded"]
    for path in (first, second):
        described = client.get(path.replace(URL, "/v2/models")).json()
        assert described["versions"] == [first.rsplit("/", 1)[1], second.rsplit("/", 1)[1]]
    assert served(client, digit_files[0]) == first
    assert "lgm_worker_up 2.0" in client.get("/metrics").text
    refused = client.delete(first)
    assert refused.status_code == 409
    assert "is active; activate another version first" in refused.json()["detail"]
    assert client.delete(second).status_code == 204
    assert states(client) == ["active", "available"]
    assert "lgm_worker_up 1.0" in client.get("/metrics").text
    assert client.delete(second).status_code == 404


def test_another_name_answers_by_the_protocol_alone_until_it_is_unloaded(
    client, models, digits_bundle, first, digit_files
):
    letters = with_other_name(digits_bundle, models / "letters", "letters")
    url = f"{URL}/letters/versions/{version_of(letters)}"
    activated = client.post(f"{url}/activate").json()
    assert activated == {"name": "letters", "version": version_of(letters), "default": False}
    assert client.post(f"{first}/activate").json()["default"]
    assert served(client, digit_files[0]) == first
    assert client.get("/readyz").json()["model"]["name"] == "digits"
    assert client.get("/v2/models/letters/ready").status_code == 200
    assert 'lgm_model_info{name="letters"' in client.get("/metrics").text
    assert client.delete(url).status_code == 204
    assert client.get("/v2/models/letters/ready").status_code == 404
    assert client.post(f"{URL}/letters/rollback").status_code == 404
    assert client.post(f"{url}/load").status_code == 200
    assert "no version of the model 'letters' is active here" in client.post(f"{URL}/letters/rollback").text
    assert 'name="letters"' not in client.get("/metrics").text
    assert client.post(f"{url}/activate").status_code == 200


def test_what_a_version_has_taken_is_answered_by_it_before_it_is_unloaded(client, first, second, digits_images):
    """Also what still waits to be decoded: here until the version is being unloaded."""
    runtime = client.app.state.runtime
    old = runtime.engine_for()
    body = {"instances": (digits_images[:100].float() / 255).tolist()}  # too many to be decoded in passing
    with ThreadPoolExecutor(2) as pool, decoding_held(old) as go_on:
        asking = pool.submit(client.post, "/v1/predict", json=body)
        while old._preparing == 0:
            assert not asking.done(), asking.result().text
        assert client.post(f"{second}/activate").status_code == 200
        unloading = pool.submit(client.delete, first)
        while old.version in runtime.registry.versions("digits"):
            assert not unloading.done(), unloading.result().text
        go_on.set()
        answer = asking.result()
        assert answer.status_code == 200, answer.text
        assert first.endswith(answer.json()["model"]["version"])
        assert unloading.result().status_code == 204


@contextmanager
def decoding_held(engine: Engine) -> Iterator[threading.Event]:
    """Its threads stand still until the event is set."""
    go_on = threading.Event()
    for _ in range(available_cpus()):
        engine._threads.submit(go_on.wait)
    try:
        yield go_on
    finally:
        go_on.set()


def test_what_is_not_here_is_unknown(client):
    for path in (
        f"{URL}/digits/versions/0000/activate",
        f"{URL}/letters/versions/0000/load",
        f"{URL}/letters/rollback",
    ):
        response = client.post(path)
        assert response.status_code == 404
        assert response.json()["type"] == "urn:lgm-guard:problem:unknown-model"


@pytest.mark.parametrize("name", ["network.safetensors", "detectors.safetensors"])
def test_a_damaged_version_is_refused_while_the_old_one_serves_on(
    client, models, first, second, digit_files, tmp_path, name
):
    damaged = changed(models / "second", tmp_path / "damaged", name)
    (damaged / name).replace(models / "second" / name)
    response = client.post(f"{second}/activate")
    assert response.status_code == 409
    assert f"second/{name} was changed" in response.json()["detail"]
    assert str(models) not in response.text
    assert served(client, digit_files[0]) == first
    assert states(client) == ["active", "available"]


def test_a_version_that_does_not_reproduce_its_scores_is_refused(client, models, digits_bundle, first, digit_files):
    wrong = with_other_scores(digits_bundle, models / "wrong")
    response = client.post(f"{URL}/digits/versions/{version_of(wrong)}/activate")
    assert response.status_code == 409
    assert "does not reproduce its reference scores" in response.json()["detail"]
    assert served(client, digit_files[0]) == first


def test_a_damaged_manifest_is_told_by_folder(client, models, second, tmp_path):
    damaged = changed(models / "second", tmp_path / "damaged", "bundle.json")
    (damaged / "bundle.json").replace(models / "second" / "bundle.json")
    assert list(client.get(URL).json()["refused"]) == ["second"]
    response = client.post(f"{second}/activate")
    assert response.status_code == 409
    assert "second: second/bundle.json" in response.json()["detail"]
    assert str(models) not in response.text


@pytest.fixture
def loads(client, digit_files) -> Iterator[list[str]]:
    """Requests without pause meanwhile, each of which must be answered; the versions that answered."""
    versions: list[str] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            versions.append(served(client, digit_files[len(versions) % len(digit_files)]))

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(send) for _ in range(4)]
        yield versions
        ended.set()
        for load in running:
            load.result(60)


def test_switching_under_load_fails_no_request(client, first, second, loads):
    for step in ("activate", "rollback", "rollback", "rollback"):
        path = f"{second}/activate" if step == "activate" else f"{URL}/digits/rollback"
        assert client.post(path).status_code == 200
        num_before = len(loads)
        while len(loads) < num_before + 20:
            client.get("/healthz")
    assert client.delete(second).status_code == 204
    assert set(loads) == {first, second}
