"""Both clients against a real service, by what the library says of the same images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from detectors import Screener
from model.image_set import to_unit
from service.client import FailedPrediction, Model, Prediction, ProblemError
from tests.server import Server
from tests.service.client.conftest import Ask
from tests.service.client.scripted import ScriptedServer, answer, problem


@pytest.fixture(scope="module")
def expected(digits_screener: Screener, digits_images: Tensor) -> list[Any]:
    return [digits_screener.screen(to_unit(digits_images[row : row + 1])) for row in range(16)]


def check(prediction: Any, verdicts: Any, screener: Screener) -> None:
    assert isinstance(prediction, Prediction)
    assert prediction.class_index == int(verdicts.class_index)
    assert prediction.label == screener.labels[int(verdicts.class_index)]
    assert prediction.probability == pytest.approx(float(verdicts.probabilities.max()), rel=1e-4)
    assert prediction.log_likelihood == pytest.approx(float(verdicts.log_likelihood), rel=1e-4)
    assert prediction.p_value == pytest.approx(float(verdicts.p_value), rel=1e-4)
    assert prediction.flagged == bool(verdicts.flagged)
    for name, says in prediction.evidence.items():
        assert says.score == pytest.approx(float(verdicts.evidence[name].score), rel=1e-3, abs=1e-3)


FORMS = {
    "bytes": lambda files, folder: files,
    "path": lambda files, folder: [folder / f"{row}.png" for row in range(len(files))],
    "text": lambda files, folder: [str(folder / f"{row}.png") for row in range(len(files))],
    "pillow": lambda files, folder: [Image.open(io.BytesIO(file)) for file in files],
    "generator": lambda files, folder: iter(files),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("max_instances", [5, 64])
def test_files_in_every_form(
    ask: Ask,
    url: str,
    form: str,
    max_instances: int,
    digit_files: list[bytes],
    expected: list[Any],
    digits_screener: Screener,
    tmp_path: Path,
) -> None:
    for row, file in enumerate(digit_files):
        (tmp_path / f"{row}.png").write_bytes(file)
    images = FORMS[form](digit_files, tmp_path)
    found = ask(url, "predict", images, max_instances=max_instances, request_id="mine")
    for prediction, verdicts in zip(found.predictions, expected, strict=True):
        check(prediction, verdicts, digits_screener)
    assert found.models == (Model(name=digits_screener.name, version=digits_screener.version),)
    assert found.request_ids == (("mine", "mine.1", "mine.2", "mine.3") if max_instances == 5 else ("mine",))


def test_one_image_alone(
    ask: Ask, url: str, digit_files: list[bytes], expected: list[Any], digits_screener: Screener
) -> None:
    (prediction,) = ask(url, "predict", digit_files[0]).predictions
    check(prediction, expected[0], digits_screener)


def test_no_image_at_all(ask: Ask, url: str) -> None:
    found = ask(url, "predict", [])
    assert (found.predictions, found.models, found.request_ids) == ((), (), ())


@pytest.mark.parametrize("max_instances", [1, 2, 64])
def test_bad_images_fail_alone_in_their_places(
    ask: Ask,
    url: str,
    max_instances: int,
    digit_files: list[bytes],
    expected: list[Any],
    digits_screener: Screener,
    tmp_path: Path,
) -> None:
    (tmp_path / "text.png").write_bytes(b"not an image")
    images = [digit_files[0], tmp_path / "missing.png", tmp_path / "text.png", digit_files[1], digit_files[2][:60]]
    found = ask(url, "predict", images, max_instances=max_instances).predictions
    check(found[0], expected[0], digits_screener)
    check(found[3], expected[1], digits_screener)
    errors = [(of.error.field, of.error.detail) for of in found if isinstance(of, FailedPrediction)]
    assert [field for field, _ in errors] == [str(tmp_path / "missing.png"), str(tmp_path / "text.png"), "images[4]"]
    for (_, detail), told in zip(errors, ("cannot be read", "not an image of an allowed", "truncated"), strict=True):
        assert told in detail


def test_images_that_are_all_bad_are_values_too(ask: Ask, url: str) -> None:
    found = ask(url, "predict", [b"one", b"two"])
    assert all("not an image" in of.error.detail for of in found.predictions)
    assert found.models == ()
    assert len(found.request_ids) == 1


def test_a_single_image_that_is_too_large_is_a_value(ask: Ask) -> None:
    act = answer(413, problem(413, "body-too-large", body="more than 5 bytes, the limit"))
    with ScriptedServer(act) as server:
        (failed,) = ask(server.url, "predict", b"x" * 9).predictions
        assert failed.error.detail == "what is wrong"
        with pytest.raises(ProblemError, match="413 body-too-large"):
            ask(server.url, "predict", [b"x" * 9] * 2)


def test_a_withheld_label_is_none(
    ask: Ask, digits_bundle: Path, abnormal_file: bytes, digit_files: list[bytes]
) -> None:
    server = Server("--bundle", str(digits_bundle), "--threads", "1", "--drain-seconds", "0", "--policy", "withhold")
    try:
        abnormal, digit = ask(server.await_ready(), "predict", [abnormal_file, digit_files[0]]).predictions
    finally:
        server.stop()
    assert (abnormal.label, abnormal.class_index, abnormal.probability, abnormal.flagged) == (None, None, None, True)
    assert digit.label is not None


def test_ready_tells_the_model(ask: Ask, url: str, digits_screener: Screener) -> None:
    assert ask(url, "ready") == Model(name=digits_screener.name, version=digits_screener.version)


def test_not_ready_is_told_at_once(ask: Ask) -> None:
    with ScriptedServer(answer(503, problem(503, "not-ready"), retry_after="1")) as server:
        assert ask(server.url, "ready") is None
    assert len(server.received) == 1


def test_a_route_that_the_service_has_not(ask: Ask, url: str) -> None:
    with pytest.raises(ProblemError, match="404") as caught:
        ask(url, "activate", "no such/model", "1")
    assert caught.value.problem.status == 404


def test_versions_are_read(ask: Ask) -> None:
    version = {"version": "abc", "state": "active", "accuracy": None, "false_alarm_rate": 0.01}
    body = {"models": [{"name": "mnist", "versions": [version]}], "refused": {"broken": "why"}}
    with ScriptedServer(answer(200, body), answer(200, {"name": "mnist", "version": "abc"})) as server:
        found = ask(server.url, "models")
        assert found.models[0].versions[0].state == "active"
        assert found.refused == {"broken": "why"}
        active = Model(name="mnist", version="abc")
        assert ask(server.url, "activate", "a b", "c/d") == ask(server.url, "roll_back", "mnist") == active
    paths = [(received.method, received.path) for received in server.received]
    assert paths == [
        ("GET", "/v1/models"),
        ("POST", "/v1/models/a%20b/versions/c%2Fd/activate"),
        ("POST", "/v1/models/mnist/rollback"),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_arrays_by_the_binary_protocol(
    ask: Ask, url: str, dtype: Any, digits_images: Tensor, expected: list[Any], digits_screener: Screener
) -> None:
    images = digits_images[:16].numpy()
    asked = images if dtype is np.uint8 else (images / np.float32(255)).astype(dtype)
    found = ask(url, "predict", asked, max_instances=5)
    for prediction, verdicts in zip(found.predictions, expected, strict=True):
        check(prediction, verdicts, digits_screener)
    assert found.models == (Model(name=digits_screener.name, version=digits_screener.version),)
    by_file = ask(url, "predict", asked[0]).predictions[0]
    assert set(by_file.evidence) == set(digits_screener.detectors)


def test_the_version_that_serves_can_be_activated_again(ask: Ask, url: str, digits_screener: Screener) -> None:
    (named,) = ask(url, "models").models
    assert [(version.version, version.state) for version in named.versions] == [(digits_screener.version, "active")]
    active = Model(name=digits_screener.name, version=digits_screener.version)
    assert ask(url, "activate", named.name, named.versions[0].version) == active
