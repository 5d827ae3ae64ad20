"""Requests in flight, the bytes they hold and rates, around an app that waits until it is told to answer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.access import Principal
from service.errors import OverloadedError
from service.flight import Flight
from service.key_file import append_key
from service.keys import Role, make_key
from service.limits import Limits
from service.rate_limit import TokenBuckets
from service.runtime import Runtime
from service.settings import load_settings
from tests.service.conftest import workers_held
from tests.service.test_keys import key_of

URL = "/v1/predict"
PNG = {"content-type": "image/png"}


class Site:
    """The limits around an app that reads its body and waits."""

    def __init__(self, *, max_requests: int = 100, per_caller: int = 0, max_bytes: int = 1000, limiter=None):
        self.flight = Flight(max_requests=max_requests, max_requests_per_caller=per_caller, max_bytes=max_bytes)
        self.runtime = Runtime(settings=load_settings())
        self.limits = Limits(self._answer, self.flight, self.runtime.oversight, limiter, self.runtime)
        self.go_on = asyncio.Event()
        self.num_images = 1

    async def _answer(self, scope, receive, send) -> None:
        await receive()
        await self.go_on.wait()
        scope["state"]["num_images"] = self.num_images
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def ask(self, caller: str = "a", *, path: str = URL, body: bytes = b"") -> tuple[int, dict[str, str]]:
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        state = {"principal": Principal(caller, Role.PREDICT), "request_id": "id"}
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "state": state}
        await self.limits(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers

    async def start(self, caller: str = "a", *, body: bytes = b"") -> asyncio.Task:
        """A request that is inside and waits."""
        before = self.flight.num_requests
        task = asyncio.create_task(self.ask(caller, body=body))
        while self.flight.num_requests == before and not task.done():
            await asyncio.sleep(0)
        return task


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def test_more_than_may_be_in_flight_is_refused_at_once_and_probes_pass():
    async def scenario() -> None:
        site = Site(max_requests=2)
        running = [await site.start("a"), await site.start("b")]
        status, headers = await site.ask("c")
        assert (status, headers["retry-after"]) == (503, "1")
        site.go_on.set()
        assert (await site.ask(path="/healthz"))[0] == 200
        assert [(await task)[0] for task in running] == [200, 200]
        assert (await site.ask("c"))[0] == 200
        assert (site.flight.num_requests, site.flight._by_caller) == (0, {})

    run(scenario)


def test_who_looks_after_a_service_comes_in_where_the_flight_is_full(make_client, tmp_path, digit_files):
    keys = {role: make_key() for role in Role}
    for role, text in keys.items():
        append_key(tmp_path / "keys", key_of(text, id=role.label, role=role))
    client = make_client(api_keys=tmp_path / "keys", max_in_flight=1)
    runtime = client.app.state.runtime
    runtime.flight.enter("predict")  # and its body does not come
    asked = [
        (Role.ADMIN, "POST", "/v1/models/digits/rollback", 409),
        (Role.ADMIN, "GET", "/v1/models", 200),
        (Role.REVIEW, "GET", "/v1/monitor", 200),
        (Role.REVIEW, "GET", "/v1/quarantine", 200),
        (Role.PREDICT, "GET", "/v1/models", 503),
        (Role.ADMIN, "POST", URL, 503),
        (Role.ADMIN, "POST", "/v2/models/digits/infer", 503),
    ]
    for role, method, path, status in asked:
        response = client.request(method, path, headers={"x-api-key": keys[role], **PNG})
        assert (role, path, response.status_code) == (role, path, status)
    assert (runtime.oversight.num_requests, runtime.flight.num_requests) == (0, 1)


def test_one_caller_may_not_take_all_places():
    async def scenario() -> None:
        site = Site(per_caller=1)
        running = await site.start("a")
        status, headers = await site.ask("a")
        assert (status, headers["retry-after"]) == (429, "1")
        other = await site.start("b")
        site.go_on.set()
        assert (await running)[0] == (await other)[0] == (await site.ask("a"))[0] == 200

    run(scenario)


def test_the_bytes_that_bodies_hold_together_are_bounded():
    async def scenario() -> None:
        site = Site(max_bytes=1000)
        running = await site.start(body=b"x" * 600)
        with pytest.raises(OverloadedError, match="more than 1000 bytes, the limit"):
            await site.ask(body=b"x" * 600)
        site.go_on.set()
        await running
        assert (await site.ask(body=b"x" * 1000))[0] == 200
        assert site.flight.num_bytes == 0

    run(scenario)


def test_a_place_is_given_back_when_a_request_fails_or_is_given_up():
    async def scenario() -> None:
        site = Site(max_requests=1)
        running = await site.start(body=b"x" * 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (site.flight.num_requests, site.flight.num_bytes) == (0, 0)

    run(scenario)


def test_who_sends_too_fast_is_told_when_to_come_back():
    async def scenario() -> None:
        now = 0.0
        site = Site(limiter=TokenBuckets(per_second=0.5, burst=2, clock=lambda: now))
        site.go_on.set()
        (first, told), (second, _), (third, refused) = [await site.ask() for _ in range(3)]
        assert (first, second, third) == (200, 200, 429)
        assert told["ratelimit-policy"] == '"images";q=2;w=4'
        assert told["ratelimit"] == '"images";r=1;t=2'
        assert refused["ratelimit"] == '"images";r=0;t=4'
        assert refused["retry-after"] == "2"
        assert (await site.ask("b"))[0] == 200
        now = 2.0
        assert (await site.ask())[0] == 200

    run(scenario)


def test_a_request_pays_for_all_its_images():
    async def scenario() -> None:
        now = 0.0
        site = Site(limiter=TokenBuckets(per_second=1, burst=4, clock=lambda: now))
        site.go_on.set()
        site.num_images = 10  # more than ever fit: let in, and paid for afterwards
        status, headers = await site.ask()
        assert (status, headers["ratelimit"]) == (200, '"images";r=0;t=10')
        assert (await site.ask())[1]["retry-after"] == "7"

    run(scenario)


def test_images_are_paid_for_whatever_the_answer_is(make_client, digit_files):
    client = make_client(rate_limit=0.001, rate_limit_burst=20)
    bad = client.post(URL, files=[("image", ("a", b"bad"))] * 4)
    assert (bad.status_code, bad.headers["ratelimit"].partition(";t=")[0]) == (422, '"images";r=16')
    floats = {"name": "images", "datatype": "FP32", "shape": [3, 1, 8, 8], "data": [2.0] * 192}
    wrong = client.post("/v2/models/digits/infer", json={"inputs": [floats]})
    assert (wrong.status_code, wrong.headers["ratelimit"].partition(";t=")[0]) == (422, '"images";r=13')
    with workers_held(client):
        files = [("image", ("a", digit_files[0]))] * 5
        late = client.post(URL, files=files, headers={"x-deadline-ms": "20"})
        tensor = {"name": "images", "datatype": "UINT8", "shape": [6, 1, 8, 8], "data": [0] * 384}
        later = client.post("/v2/models/digits/infer", json={"inputs": [tensor], "parameters": {"timeout": 20_000}})
    assert (late.status_code, late.headers["ratelimit"].partition(";t=")[0]) == (504, '"images";r=8')
    assert (later.status_code, later.headers["ratelimit"].partition(";t=")[0]) == (504, '"images";r=2')


def test_the_app_counts_its_images(make_client, digit_files):
    client = make_client(rate_limit=0.001, rate_limit_burst=5)
    files = [("image", ("a", file)) for file in (*digit_files[:3], b"bad")]
    assert client.post(URL, files=files).headers["ratelimit"].startswith('"images";r=1;')
    assert client.post(URL, content=digit_files[0], headers=PNG).status_code == 200
    refused = client.post(URL, content=digit_files[0], headers=PNG)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:lgm-guard:problem:rate-limited")
    assert int(refused.headers["retry-after"]) > 100
    assert client.get("/readyz").status_code == 200
    assert 'lgm_rejected_total{reason="rate-limited"} 1.0' in client.get("/metrics").text
