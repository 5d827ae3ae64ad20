"""What is sent again and what is not, against a real server that fails as told."""

import contextlib
import email.utils
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import anyio
import httpx
import pytest

from service.client import (
    AnswerError,
    AsyncClient,
    Client,
    DeadlineError,
    InputError,
    ProblemError,
    Retries,
    UnreachableError,
)
from service.client.retries import Attempts, retry_after
from tests.service.client.conftest import Ask
from tests.service.client.scripted import (
    MODEL,
    Act,
    ScriptedServer,
    answer,
    answered,
    garbage,
    go_on_for_ever,
    half_an_answer,
    hang_up,
    problem,
    stall,
    trickle,
    trickle_head,
)

FAST = Retries(first_wait_seconds=0.01, max_wait_seconds=0.02)
IMAGE = b"an image"
GOOD = answer(200, answered())
OVERLOADED = answer(503, problem(503, "overloaded"))


@pytest.mark.parametrize(
    "failure",
    [
        OVERLOADED,
        answer(503, problem(503, "not-ready"), retry_after="0"),
        answer(503, b"<html>from a proxy</html>"),
        answer(429, problem(429, "rate-limited"), retry_after="0"),
        answer(429, problem(429, "rate-limited"), retry_after="when it pleases"),
        hang_up,
    ],
)
def test_it_is_sent_again(ask: Ask, failure: Act) -> None:
    with ScriptedServer(failure, failure, GOOD) as server:
        found = ask(server.url, "predict", IMAGE, retries=FAST, request_id="mine", key="secret")
        assert found.predictions[0].label == "7"
    assert len(server.received) == 3
    assert {received.headers["x-request-id"] for received in server.received} == {"mine"}
    assert {received.headers["authorization"] for received in server.received} == {"Bearer secret"}
    assert len({received.body.split(b"\r\n", 1)[1].rsplit(b"\r\n--", 1)[0] for received in server.received}) == 1
    left = [int(received.headers["x-deadline-ms"]) for received in server.received]
    assert all(later < earlier <= 30_000 for earlier, later in pairwise(left))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 500, 504])
def test_a_refusal_is_not_sent_again(ask: Ask, status: int) -> None:
    act = answer(status, problem(status, "some-code", header="wrong"), retry_after="0")
    refused = pytest.raises(ProblemError, match=f"{status} some-code: what is wrong")
    with ScriptedServer(act) as server, refused as caught:
        ask(server.url, "predict", [IMAGE, IMAGE], retries=FAST)
    assert len(server.received) == 1
    assert caught.value.problem.errors[0].field == "header"


@pytest.mark.parametrize("broken", [garbage, half_an_answer])
def test_what_was_answered_by_halves_is_not_sent_again(ask: Ask, broken: Act) -> None:
    with ScriptedServer(broken) as server, pytest.raises(UnreachableError, match=server.url):
        ask(server.url, "predict", IMAGE, retries=FAST)
    assert len(server.received) == 1


def test_it_gives_up_after_so_many_attempts(ask: Ask) -> None:
    with ScriptedServer(OVERLOADED) as server, pytest.raises(ProblemError, match="503 overloaded"):
        ask(server.url, "predict", IMAGE, retries=Retries(max_attempts=3, first_wait_seconds=0.01))
    assert len(server.received) == 3


def test_what_would_be_undone_by_a_second_time_is_sent_again_only_after_a_refusal(ask: Ask) -> None:
    lost = pytest.raises(UnreachableError, match="gave no answer and may have done what was asked")
    with ScriptedServer(OVERLOADED, hang_up, answer(200, MODEL)) as server, lost:
        ask(server.url, "roll_back", "mnist", retries=FAST)
    assert len(server.received) == 2
    with ScriptedServer(hang_up, answer(200, MODEL)) as server:
        ask(server.url, "activate", "mnist", "abc", retries=FAST)
    assert len(server.received) == 2


def test_what_was_never_sent_is_sent_again_whatever_it_is() -> None:
    attempts = Attempts(FAST, timeout_seconds=60, repeatable=False)
    attempts.begin()
    assert attempts.after_failure(httpx.ConnectError("refused")) <= 0.01


def test_nobody_there(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"http://127.0.0.1:{port} cannot be reached: "):
        ask(f"http://127.0.0.1:{port}", "predict", IMAGE, retries=FAST)


def test_a_proxy_that_refuses(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(answer(403, b"")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(
            UnreachableError, match=rf"https://service\.example cannot be reached through the proxy {proxy.url}: 403"
        ):
            ask("https://service.example", "predict", IMAGE, retries=FAST)


def test_a_proxy_that_refuses_in_plain(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(answer(407, b"")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(
            AnswerError, match=rf"http://service\.example/\S+ through the proxy {proxy.url} answered 407"
        ):
            ask("http://service.example", "predict", IMAGE)


def test_a_proxy_that_is_not_there(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HTTP_PROXY", url.replace("//", "//bob:secret@"))
    with pytest.raises(
        UnreachableError, match=rf"http://service\.example cannot be reached through the proxy {url}: "
    ):
        ask("http://service.example", "predict", IMAGE, retries=FAST)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "SOCKS"),
        ("HTTP_PROXY", "ftp://127.0.0.1", "ftp"),
        ("https_proxy", "http://[::1", "port"),
        ("SSL_CERT_FILE", "/nonexistent.pem", "No such file"),
        ("SSL_CERT_FILE", __file__, "no certificate"),
    ],
)
def test_an_environment_by_which_no_client_can_be_made(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}.* of the environment: .*{told}"):
        ask("http://127.0.0.1:1", "ready")


def test_retry_after_is_waited_for(ask: Ask) -> None:
    with ScriptedServer(answer(503, problem(503, "overloaded"), retry_after="1"), GOOD) as server:
        started = time.monotonic()
        ask(server.url, "predict", IMAGE, retries=FAST)
        assert 1 <= time.monotonic() - started < 10


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(ask: Ask) -> None:
    with ScriptedServer(answer(503, problem(503, "overloaded"), retry_after="3600")) as server:
        started = time.monotonic()
        with pytest.raises(ProblemError, match="503 overloaded"):
            ask(server.url, "predict", IMAGE)
        assert time.monotonic() - started < 10
    assert len(server.received) == 1


@pytest.mark.parametrize("act", [trickle, trickle_head, go_on_for_ever, stall, lambda handler: time.sleep(1)])
def test_the_deadline_holds_over_all(ask: Ask, act: Act) -> None:
    with ScriptedServer(act) as server:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.3 s"):
            ask(server.url, "predict", IMAGE, timeout_seconds=0.3)
        assert 0.3 <= time.monotonic() - started < 5


def test_the_deadline_holds_over_a_request_that_is_read_slowly(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        enough = threading.Event()
        reader = threading.Thread(target=read_slowly, args=(server, enough))
        reader.start()
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}", "predict", bytes(64 << 20), timeout_seconds=0.5)
        assert time.monotonic() - started < 5
        enough.set()
        reader.join()


def read_slowly(server: socket.socket, enough: threading.Event) -> None:
    """A piece every 10 ms."""
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        while connection.recv(65_536) and not enough.wait(0.01):
            pass


@pytest.mark.parametrize(
    "act",
    [
        answer(200, b"<html>hello</html>"),
        answer(200, {"hello": 1}),
        answer(200, b"[" * 200_000),
        answer(200, b"no gzip", content_encoding="gzip"),
        answer(307, b"", location="http://xn--"),
        answer(404, b"none"),
    ],
)
def test_the_answer_of_something_else(ask: Ask, act: Act) -> None:
    with ScriptedServer(act) as server, pytest.raises(AnswerError, match=f"{server.url}/v1/predict answered"):
        ask(server.url, "predict", IMAGE)


def test_another_number_of_answers_than_images(ask: Ask) -> None:
    with (
        ScriptedServer(answer(200, answered(2))) as server,
        pytest.raises(AnswerError, match="2 predictions came for 3"),
    ):
        ask(server.url, "predict", [IMAGE] * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "127.0.0.1:8000"},
        {"url": "ftp://host"},
        {"url": "http://[::1"},
        {"url": "http://xn--"},
        {"url": "http://host/\udcff"},
        {"url": f"http://{'a' * 300}"},
        {"url": "http://127.0.0.1:99999"},
        {"url": "http://127.0.0.1:1/?a=b"},
        {"url": "http://127.0.0.1:1#a"},
        {"key": "two words"},
        {"key": "new\nline"},
        {"key": ""},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("nan")},
        {"max_instances": 0},
        {"verify": "/nonexistent.pem"},
    ],
)
def test_what_no_request_could_be_made_of(ask: Ask, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ask(**{"url": "http://127.0.0.1:1", "method": "ready", **options})


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 57, "ü"])
def test_request_ids_that_the_service_would_not_take(ask: Ask, request_id: str) -> None:
    with pytest.raises(InputError, match="a request id is"):
        ask("http://127.0.0.1:1", "predict", IMAGE, request_id=request_id)


@pytest.mark.parametrize(("name", "version"), [("\udcff", "abc"), ("mnist", "\ud800")])
def test_names_that_no_path_can_hold(ask: Ask, name: str, version: str) -> None:
    with pytest.raises(InputError, match="names no model or version"):
        ask("http://127.0.0.1:1", "activate", name, version)


def test_a_closed_client_says_so() -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    with pytest.raises(InputError, match="this client is closed"):
        client.predict(IMAGE)


async def predict_with_a_closed_client() -> None:
    client = AsyncClient("http://127.0.0.1:1")
    await client.close()
    await client.predict([IMAGE, IMAGE])


def test_a_closed_async_client_says_so() -> None:
    with pytest.raises(InputError, match="this client is closed"):
        anyio.run(predict_with_a_closed_client)


def test_waits_double_up_to_their_limit_and_are_cut_at_random() -> None:
    response = httpx.Response(503)
    for draw in (0.0, 0.5, 1.0):
        retries = Retries(max_attempts=8, first_wait_seconds=0.1, max_wait_seconds=1)
        attempts = Attempts(retries, timeout_seconds=60, draw=lambda draw=draw: draw)
        waits = []
        for _ in range(8):
            attempts.begin()
            waits.append(attempts.after_response(response))
        assert waits == [pytest.approx(draw * wait) for wait in (0.1, 0.2, 0.4, 0.8, 1, 1, 1)] + [None]


def test_a_retry_after_is_followed_for_as_long_as_there_is_time() -> None:
    attempts = Attempts(Retries(), timeout_seconds=60)
    for _ in range(2000):
        attempts.begin()
        assert attempts.after_response(httpx.Response(503, headers={"retry-after": "1"})) is not None
    for _ in range(4):
        attempts.begin()
        assert attempts.after_response(httpx.Response(503)) is not None
    attempts.begin()
    assert attempts.after_response(httpx.Response(503)) is None


@pytest.mark.parametrize(
    ("told", "draw", "wait"),
    [(0, 1, 0.1), (2, 0, 2), (2, 0.5, 3), (30, 1, 35), (58, 1, 59)],
)
def test_those_told_the_same_come_back_apart_and_in_time(told: float, draw: float, wait: float) -> None:
    attempts = Attempts(Retries(), timeout_seconds=60, draw=lambda: draw)
    attempts.begin()
    response = httpx.Response(503, headers={"retry-after": str(told)})
    assert attempts.after_response(response) == pytest.approx(wait, abs=0.1)


@pytest.mark.parametrize("fields", [{"max_attempts": 0}, {"first_wait_seconds": -1}, {"max_wait_seconds": 0.01}])
def test_retries_that_make_no_sense(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match="max_attempts >= 1"):
        Retries(**fields)


def test_the_forms_of_retry_after() -> None:
    def date(**offset: float) -> str:
        return email.utils.format_datetime(datetime.now(UTC) + timedelta(**offset), usegmt=True)

    assert retry_after("7") == 7
    assert retry_after("0") == 0
    assert retry_after(date(seconds=100)) == pytest.approx(100, abs=2)
    assert retry_after(date(days=-1)) == 0
    assert retry_after("Sun Nov  6 08:49:37 1994") == 0  # asctime's form, without a zone
    for nonsense in (None, "", "-1", "1.5", "soon", "١", f"Mon, 01 Jan 2024 {'9' * 20}:00:00 GMT"):
        assert retry_after(nonsense) is None
