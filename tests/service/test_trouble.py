"""Overload, deadlines, failures and deaths of real worker processes behind a running app."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import pytest

from model.image_set import to_unit
from service.errors import InferenceError, InvalidInputError, OverloadedError
from tests.service.conftest import workers_held

URL = "/v1/predict"
PNG = {"content-type": "image/png"}


def post(client, file, **headers):
    return client.post(URL, content=file, headers={**PNG, **headers})


def engine_of(client):
    return client.app.state.runtime.engine_for()


def await_depth(client, depth: int) -> None:
    while engine_of(client).depth != depth:
        client.get("/healthz")


def test_overload_is_refused_at_once_while_probes_answer(make_client, digit_files):
    client = make_client(max_batch_size=1, queue_capacity=2, max_instances=2)
    with ThreadPoolExecutor(3) as pool, workers_held(client):
        running = [pool.submit(post, client, digit_files[0]) for _ in range(3)]
        await_depth(client, 2)
        refused = post(client, b"not even decoded")
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert "lgm_queue_depth 2.0" in client.get("/metrics").text
    assert [request.result(30).status_code for request in running] == [200] * 3
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "2 images wait; the limit is 2" in refused.json()["detail"]
    assert 'lgm_rejected_total{reason="overloaded"} 1.0' in client.get("/metrics").text
    assert post(client, digit_files[0]).status_code == 200


@pytest.mark.parametrize("given", [{"request_timeout_seconds": 0.05}, {}])
def test_a_request_past_its_deadline_is_answered_and_the_next_one_served(make_client, digit_files, given):
    client = make_client(**given)
    headers = {} if given else {"x-deadline-ms": "50"}
    with workers_held(client):
        late = post(client, digit_files[0], **headers)
    assert late.status_code == 504
    assert late.json()["detail"] == "no answer before the deadline"
    while post(client, digit_files[0]).status_code != 200:
        pass


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "soon", "", "9" * 10, "²"])
def test_a_deadline_that_is_none_is_refused_by_name(client, digit_files, header):
    response = client.post(URL, content=digit_files[0], headers={**PNG, "x-deadline-ms": header.encode()})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "x-deadline-ms"


def test_a_killed_worker_is_replaced_and_what_it_judged_is_judged_again(make_client, digit_files):
    client = make_client()
    with ThreadPoolExecutor(4) as pool:
        with workers_held(client) as pids:
            running = [pool.submit(post, client, file) for file in digit_files[:4]]
            await_depth(client, 3)
            os.kill(pids[0], signal.SIGKILL)
        assert [request.result(30).status_code for request in running] == [200] * 4
    assert engine_of(client).worker_pids != pids
    text = client.get("/metrics").text
    assert "lgm_worker_restarts_total 1.0" in text
    assert "lgm_worker_up 1.0" in text


def test_without_a_worker_it_is_alive_and_not_ready(make_client, digit_files):
    client = make_client()
    (pid,) = engine_of(client).worker_pids
    os.kill(pid, signal.SIGKILL)
    while (not_ready := client.get("/readyz")).status_code == 200:
        pass
    assert not_ready.json()["detail"] == "the model's worker is being restarted"
    assert client.get("/healthz").status_code == 200
    assert post(client, digit_files[0]).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_a_hung_worker_is_replaced(make_client, digit_files, caplog):
    client = make_client(inference_timeout_seconds=0.2)
    (pid,) = engine_of(client).worker_pids
    os.kill(pid, signal.SIGSTOP)
    assert post(client, digit_files[0]).status_code == 200
    assert engine_of(client).worker_pids != [pid]
    assert f"worker {pid} has hung" in caplog.text


def test_images_that_the_model_cannot_judge_fail_alone(make_client, digits_images):
    client = make_client()
    good = to_unit(digits_images[:1]).numpy()
    bad = np.full_like(good, np.nan)

    async def scenario():
        asked = [engine_of(client).screen(images) for images in (good, bad, good)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = client.portal.call(scenario)
    assert isinstance(failed, InferenceError)
    assert first.log_likelihood == pytest.approx(last.log_likelihood)
    with pytest.raises(InvalidInputError, match=r"must have shape .*, got \(1, 1, 2, 2\)"):
        client.portal.call(engine_of(client).screen, np.zeros((1, 1, 2, 2)))


def test_an_error_nobody_foresaw_is_a_500_with_the_requests_id(make_client, digit_files, caplog):
    client = make_client()
    engine_of(client)._threads.shutdown()
    large = [("image", ("a.png", digit_files[0] + bytes(20_000)))]
    response = client.post(URL, files=large)
    assert response.status_code == 500
    assert response.json()["type"] == "urn:lgm-guard:problem:internal-error"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "shutdown" not in response.text
    assert "cannot schedule new futures after shutdown" in caplog.text
    assert 'lgm_requests_total{route="/v1/predict",status="500"} 1.0' in client.get("/metrics").text


async def status_of(
    app, receive: Callable[[], Awaitable[dict[str, object]]], *, path: str = URL, deadline_ms: int | None = None
) -> int:
    """The status of a prediction whose body arrives as `receive` says."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    if deadline_ms is not None:
        scope["headers"].append((b"x-deadline-ms", b"%d" % deadline_ms))
    await app(scope, receive, send)
    return sent[0]["status"]


def test_a_body_that_does_not_arrive_is_given_up(make_client):
    async def receive():
        await asyncio.Event().wait()

    client = make_client(request_timeout_seconds=0.01)
    for deadline_ms in (None, 1000):
        asked = partial(status_of, client.app, receive, deadline_ms=deadline_ms)
        assert client.portal.call(asked) == 408


@pytest.mark.parametrize("path", [URL, "/v2/models/digits/infer"])
def test_a_body_is_waited_for_no_longer_than_its_caller_waits(make_client, path):
    async def receive():
        await asyncio.Event().wait()

    client = make_client(request_timeout_seconds=1000)
    assert client.portal.call(partial(status_of, client.app, receive, path=path, deadline_ms=20)) == 504


def test_a_caller_who_goes_away_while_sending_is_no_failure(make_client, caplog):
    async def receive():
        return {"type": "http.disconnect"}

    client = make_client()
    assert client.portal.call(status_of, client.app, receive) == 499
    assert 'lgm_requests_total{route="/v1/predict",status="499"} 1.0' in client.get("/metrics").text
    assert "Traceback" not in caplog.text


def test_a_caller_who_goes_away_while_waiting_is_not_judged(make_client, digit_files):
    client = make_client()
    arriving = iter([{"type": "http.request", "body": digit_files[0], "more_body": False}])

    async def receive():
        return next(arriving, {"type": "http.disconnect"})

    with ThreadPoolExecutor(2) as pool, workers_held(client):
        running = pool.submit(post, client, digit_files[0])
        while "lgm_batch_size_count 1.0" not in client.get("/metrics").text:
            pass
        gone = pool.submit(client.portal.call, status_of, client.app, receive)
        await_depth(client, 1)
        wait([running], timeout=0.05)  # callers are not asked after shorter waits
    assert running.result(30).status_code == 200
    assert gone.result(30) == 499
    assert "lgm_batch_size_sum 1.0" in client.get("/metrics").text


def test_decoding_is_bounded_too(make_client):
    client = make_client(queue_capacity=1, max_instances=1)

    async def scenario() -> None:
        engine, release = engine_of(client), asyncio.Event()
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(
            engine.prepare(lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result())
        )
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="1 requests wait to be decoded"):
            await engine.prepare(list)
        release.set()
        await running
        assert await engine.prepare(list) == []

    client.portal.call(scenario)
