"""Overload, deadlines and failures behind a running app; a hook on the real network holds or breaks it."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine import Engine
from service.errors import OverloadedError
from service.metrics import Metrics

URL = "/v1/predict"
PNG = {"content-type": "image/png"}


def both(files):
    return [("image", ("a.png", file)) for file in files[:2]]


def test_overload_is_refused_at_once_while_probes_answer(make_client, own_screener, gate, digit_files):
    own_screener.network.register_forward_pre_hook(gate.pass_through)
    client = make_client(screener=own_screener, max_batch_size=1, queue_capacity=2, max_instances=2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, URL, files=both(digit_files))
        gate.await_arrival()  # one image on the device, one waits
        refused = client.post(URL, files=both(digit_files))
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert "lgm_queue_depth 1.0" in client.get("/metrics").text
        gate.open()
        assert running.result(30).status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "1 images wait; the limit is 2" in refused.json()["detail"]
    assert 'lgm_rejected_total{reason="overloaded"} 1.0' in client.get("/metrics").text
    assert client.post(URL, files=both(digit_files)).status_code == 200


def test_a_request_past_its_deadline_is_answered_and_the_next_one_served(
    make_client, own_screener, gate, digit_files
):
    own_screener.network.register_forward_pre_hook(gate.pass_through)
    client = make_client(screener=own_screener, request_timeout_seconds=0.05)
    late = client.post(URL, content=digit_files[0], headers=PNG)
    assert late.status_code == 504
    assert "0.05 s, the limit" in late.json()["detail"]
    gate.open()
    client.app.state.runtime.settings = client.app.state.runtime.settings.model_copy(
        update={"request_timeout_seconds": 30}
    )
    assert client.post(URL, content=digit_files[0], headers=PNG).status_code == 200


def test_a_failing_model_is_a_500_that_tells_nothing_and_the_next_request_is_served(
    make_client, own_screener, digit_files, caplog
):
    def fail(*arguments):
        raise RuntimeError("planted at /secret/path.py")

    hook = own_screener.network.register_forward_pre_hook(fail)
    client = make_client(screener=own_screener)
    response = client.post(URL, content=digit_files[0], headers=PNG)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "planted" not in response.text
    assert "planted" in caplog.text
    hook.remove()
    assert client.get("/readyz").status_code == 200
    assert client.post(URL, content=digit_files[0], headers=PNG).status_code == 200


def test_a_model_that_gives_no_number_answers_nobody(make_client, own_screener, digit_files, caplog):
    own_screener.network.mixture.means.fill_(float("nan"))
    response = make_client(screener=own_screener).post(URL, content=digit_files[0], headers=PNG)
    assert response.status_code == 500
    assert "not finite" in caplog.text


def test_an_error_nobody_foresaw_is_a_500_with_the_requests_id(make_client, digit_files, caplog):
    client = make_client()
    client.app.state.runtime.engine.close()  # its decoding pool refuses with a RuntimeError
    response = client.post(URL, content=digit_files[0], headers=PNG)
    assert response.status_code == 500
    assert response.json()["type"] == "urn:lgm-guard:problem:internal-error"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "shutdown" not in response.text
    assert "cannot schedule new futures after shutdown" in caplog.text
    assert 'lgm_requests_total{route="/v1/predict",status="500"} 1.0' in client.get("/metrics").text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_turns_readiness_off(make_client, own_screener, digit_files):
    def die(*arguments):
        raise SystemExit

    own_screener.network.register_forward_pre_hook(die)
    client = make_client(screener=own_screener)
    assert client.get("/readyz").status_code == 200
    assert client.post(URL, content=digit_files[0], headers=PNG).status_code == 500
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    response = client.post(URL, content=digit_files[0], headers=PNG)
    assert response.status_code == 503
    assert response.json()["detail"] == "the model's worker has stopped"


async def status_of(app, receive: Callable[[], Awaitable[dict[str, object]]]) -> int:
    """The status of a prediction whose body arrives as `receive` says."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    await app(scope, receive, send)
    return sent[0]["status"]


def test_a_body_that_does_not_arrive_is_given_up(make_client):
    async def receive():
        await asyncio.Event().wait()

    app = make_client(request_timeout_seconds=0.01).app
    assert asyncio.run(status_of(app, receive)) == 408


def test_a_caller_who_goes_away_while_sending_is_no_failure(make_client, caplog):
    async def receive():
        return {"type": "http.disconnect"}

    client = make_client()
    assert asyncio.run(status_of(client.app, receive)) == 499
    assert 'lgm_requests_total{route="/v1/predict",status="499"} 1.0' in client.get("/metrics").text
    assert "Traceback" not in caplog.text


def test_decoding_is_bounded_too(own_screener, settings, gate):
    bounded = settings.model_copy(update={"queue_capacity": 1, "threads": 1})
    engine = Engine(own_screener, settings=bounded, metrics=Metrics())

    async def scenario() -> None:
        running = asyncio.create_task(engine.prepare(gate.pass_through))
        await asyncio.to_thread(gate.await_arrival)
        with pytest.raises(OverloadedError, match="1 requests wait to be decoded"):
            await engine.prepare(list)
        gate.open()
        await running
        assert await engine.prepare(list) == []

    asyncio.run(scenario())
    engine.close()
