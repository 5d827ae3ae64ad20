"""The stream over a service that has no model yet: the snapshots are real, and say so."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message

from service.access import Access, least_role
from service.errors import NotReadyError, OverloadedError
from service.keys import Role
from service.monitoring import pulse as pulses
from service.monitoring.pulse import Pulse
from service.monitoring.snapshot import Snapshot
from service.routes import monitor as routes
from service.routes.monitor import EventStream
from service.runtime import Runtime
from service.settings import load_settings


def run(scenario: Callable[[Pulse], Coroutine[Any, Any, None]]) -> Callable[[pytest.MonkeyPatch], None]:
    """A test that runs the scenario on an event loop, beats being ten times as fast."""

    async def around() -> None:
        pulse = Runtime(settings=load_settings()).pulse
        pulse.start()
        try:
            await asyncio.wait_for(scenario(pulse), 30)
        finally:
            await pulse.stop()

    def test(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pulses, "BEAT_SECONDS", 0.1)
        asyncio.run(around())

    return test


def snapshot_of(event: bytes) -> Snapshot:
    name, data = event.decode().rstrip("\n").split("\n")
    assert name == "event: snapshot"
    return Snapshot.model_validate_json(data.removeprefix("data: "))


@run
async def test_the_first_event_comes_at_once_and_says_how_it_is(pulse):
    events = pulse.listen()
    snapshot = snapshot_of(await anext(events))
    assert (snapshot.level, snapshot.ready, snapshot.models) == ("alarm", False, [])
    assert "not ready" in snapshot.summary
    await events.aclose()


@run
async def test_all_who_listen_get_one_and_the_same_snapshot(pulse):
    listeners = [pulse.listen() for _ in range(5)]
    for events in listeners:
        await anext(events)
    first, *others = await asyncio.gather(*(anext(events) for events in listeners))
    assert all(event is first for event in others)
    later = await anext(listeners[0])
    assert snapshot_of(later).time > snapshot_of(first).time


@run
async def test_who_is_slow_finds_the_latest_and_no_backlog(pulse):
    slow, quick = pulse.listen(), pulse.listen()
    await anext(slow)
    await anext(quick)
    for _ in range(4):
        last = await anext(quick)
    assert snapshot_of(await anext(slow)).time > snapshot_of(last).time


@run
async def test_so_many_may_listen_and_no_more(pulse):
    listeners = [pulse.listen() for _ in range(pulses.MOST_LISTENERS)]
    for events in listeners:
        pulse.check_room()
        await anext(events)
    with pytest.raises(OverloadedError, match="64 listen to the monitor, the limit"):
        pulse.check_room()
    await listeners[0].aclose()
    pulse.check_room()


@run
async def test_streams_end_with_the_service(pulse):
    events = pulse.listen()
    await anext(events)
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    pulse.end_streams()
    with pytest.raises(StopAsyncIteration):
        await waiting
    with pytest.raises(NotReadyError, match="shutting down"):
        pulse.check_room()


@run
async def test_a_snapshot_is_made_no_oftener_than_it_beats(pulse):
    first, second = await asyncio.gather(pulse.latest(), pulse.latest())
    assert first is second
    assert json.loads(first)["service_version"]


async def listen_slowly(pulse: Pulse) -> None:
    released, begun = asyncio.Event(), asyncio.Event()
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            begun.set()
            await released.wait()
            bodies.append(message["body"])

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/v1/monitor/stream", "headers": []}
    streaming = asyncio.create_task(EventStream(pulse.listen(), Access(None))(scope, receive, send))
    await begun.wait()
    while pulse._num_listeners:
        await asyncio.sleep(0)
    released.set()
    await streaming
    assert bodies == [b""]


def test_who_does_not_take_an_event_is_cut_off(monkeypatch):
    monkeypatch.setattr(routes, "SLOW_SECONDS", 0.05)
    run(listen_slowly)(monkeypatch)


def test_it_is_for_reviewers():
    for path in ("/v1/monitor", "/v1/monitor/stream"):
        assert least_role("GET", path) is Role.REVIEW
