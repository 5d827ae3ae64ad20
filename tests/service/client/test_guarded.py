"""Both clients against a real service that asks for a key and lets each one image a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Prediction, ProblemError, Retries
from service.key_file import append_key
from service.keys import Role, make_key
from tests.server import Server
from tests.service.client.conftest import Ask
from tests.service.test_keys import key_of


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The file, a key for predictions, one for everything."""
    path, predict, admin = tmp_path_factory.mktemp("keys") / "keys.toml", make_key(), make_key()
    append_key(path, key_of(predict, id="predict-1", role=Role.PREDICT))
    append_key(path, key_of(admin, id="admin-1", role=Role.ADMIN))
    return path, predict, admin


@pytest.fixture(scope="module")
def guarded(digits_bundle: Path, keys: tuple[Path, str, str]) -> Iterator[str]:
    limits = ("--api-keys", str(keys[0]), "--rate-limit", "1", "--rate-limit-burst", "1")
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0", *limits)
    try:
        yield server.await_ready()
    finally:
        server.stop()


def test_a_key_opens_and_a_refusal_for_haste_is_waited_out(
    ask: Ask, guarded: str, keys: tuple[Path, str, str], digit_files: list[bytes]
) -> None:
    for file in digit_files[:2]:
        (prediction,) = ask(guarded, "predict", file, key=keys[1]).predictions
        assert isinstance(prediction, Prediction)


def test_without_retries_haste_is_a_problem(
    ask: Ask, guarded: str, keys: tuple[Path, str, str], digit_files: list[bytes]
) -> None:
    with pytest.raises(ProblemError) as caught:
        ask(guarded, "predict", digit_files, key=keys[1], max_instances=1, retries=Retries(max_attempts=1))
    assert (caught.value.problem.status, caught.value.problem.code) == (429, "rate-limited")


def test_the_role_decides(ask: Ask, guarded: str, keys: tuple[Path, str, str]) -> None:
    with pytest.raises(ProblemError) as caught:
        ask(guarded, "models")
    assert caught.value.problem.status == 401
    with pytest.raises(ProblemError) as caught:
        ask(guarded, "roll_back", "digits", key=keys[1])
    assert caught.value.problem.status == 403
    with pytest.raises(ProblemError) as caught:
        ask(guarded, "roll_back", "digits", key=keys[2])
    assert caught.value.problem.status == 409
