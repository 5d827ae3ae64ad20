"""Overload said at the door says the same as the application would."""

import asyncio
import json

import h11
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.runtime import Runtime
from service.shedding import Shedding
from service.turns import Turns
from tests.service.conftest import workers_held

PATHS = ("/v1/predict", "/v2/models/digits/infer", "/v2/models/digits/versions/{version}/infer")


def ask(client: TestClient, method: bytes, target: bytes, given_id: bytes = b"") -> bytes | None:
    """On the app's event loop, where connections ask."""

    async def inside() -> bytes | None:
        return Shedding(client.app.state.runtime, Turns(), over_tls=False).refusal(method, target, given_id)

    return client.portal.call(inside)


def parsed(answer: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    """By a parser that takes nothing but valid HTTP."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(answer)
    head, body = connection.next_event(), connection.next_event()
    assert isinstance(head, h11.Response)
    assert isinstance(body, h11.Data)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    headers = {name.decode(): value.decode() for name, value in head.headers}
    return head.status_code, headers, json.loads(bytes(body.data))


@pytest.fixture
def full(make_client):
    """A client of an app that has as many requests in flight as it may."""
    client = make_client(max_in_flight=1)
    client.app.state.runtime.flight.enter("somebody")
    yield client
    client.app.state.runtime.flight.leave("somebody", 0)


def test_a_refusal_at_the_door_is_the_applications_to_the_letter(full: TestClient):
    version = full.app.state.runtime.engine_for().version
    for template in PATHS:
        path = template.format(version=version)
        ours = ask(full, b"POST", path.encode() + b"?a=b", b"mine")
        theirs = full.post(path, content=b"x", headers={"x-request-id": "mine", "content-type": "image/png"})
        status, headers, body = parsed(ours)
        assert (status, body) == (theirs.status_code, theirs.json())
        assert headers == dict(theirs.headers)


def test_the_door_leaves_everything_else_to_the_application(full: TestClient):
    others = [(b"GET", b"/v1/predict"), (b"POST", b"/v1/models/digits/versions/1/activate")]
    others += [(b"POST", b"/v1/predict/"), (b"POST", b"/v2/models/other/infer")]
    others += [(b"POST", b"/v2/models/digits/versions/other/infer"), (b"POST", b"*")]
    others += [(b"POST", b"/v1/predict\xff"), (b"GET", b"/healthz")]
    assert [ask(full, method, target) for method, target in others] == [None] * len(others)


def test_the_door_is_open_while_there_is_room_and_while_the_service_ends(make_client):
    client = make_client(max_in_flight=1)
    runtime: Runtime = client.app.state.runtime
    assert ask(client, b"POST", b"/v1/predict") is None
    runtime.flight.enter("somebody")
    runtime.draining = True  # the application says that it is not ready
    assert ask(client, b"POST", b"/v1/predict") is None
    runtime.draining = False
    assert ask(client, b"POST", b"/v1/predict") is not None
    runtime.flight.leave("somebody", 0)


def test_what_arrives_at_once_is_let_pass_as_far_as_there_is_room(make_client):
    client = make_client(max_in_flight=3)
    turns = Turns()
    shedding = Shedding(client.app.state.runtime, turns, over_tls=True)

    def ask_and_let_in() -> bytes | None:
        has_room = shedding.has_room()
        answer = shedding.refusal(b"POST", b"/v1/predict", b"")
        assert has_room == (answer is None)
        if answer is None:
            turns.let_in()
        return answer

    async def in_two_turns() -> list[int]:
        counts = []
        for _ in range(2):
            answers = [ask_and_let_in() for _ in range(5)]
            assert all(b"strict-transport-security" in answer for answer in answers if answer)
            counts.append(answers.count(None))
            for _ in range(3):
                await asyncio.sleep(0)
        return counts

    assert client.portal.call(in_two_turns) == [3, 3]
    metrics = client.get("/metrics").text
    assert 'lgm_requests_total{route="/v1/predict",status="503"} 4.0' in metrics
    assert 'lgm_rejected_total{reason="overloaded"} 4.0' in metrics


def test_those_who_wait_have_their_place(make_client):
    client = make_client(max_in_flight=2)

    async def with_two_waiting() -> list[bool]:
        turns = Turns()
        shedding = Shedding(client.app.state.runtime, turns, over_tls=False)
        found = [shedding.has_room()]
        for is_request in (True, False, True):  # the second is part of a body
            turns.wait(lambda: None, is_request=is_request)
            found.append(shedding.refusal(b"POST", b"/v1/predict", b"") is None)
        return found

    assert client.portal.call(with_two_waiting) == [True, True, True, False]


def test_a_full_queue_is_told_at_the_door(make_client):
    client = make_client(queue_capacity=1, max_instances=1)
    runtime: Runtime = client.app.state.runtime
    engine = runtime.engine_for()
    image = np.zeros((1, *engine.image_format.shape), np.float32)

    async def fill_and_ask() -> bytes | None:
        judging = [asyncio.ensure_future(engine.screen(image)) for _ in range(2)]
        while engine.depth < 1:
            await asyncio.sleep(0)
        answer = Shedding(runtime, Turns(), over_tls=False).refusal(b"POST", b"/v1/predict", b"")
        for future in judging:
            future.cancel()
        return answer

    with workers_held(client):
        answer = client.portal.call(fill_and_ask)
    assert answer is not None
    assert parsed(answer)[2]["detail"] == "1 images wait; the limit is 1"
