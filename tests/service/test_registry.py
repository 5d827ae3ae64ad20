"""Changes of versions that meet: what is loaded is switched to at once, and the last request for a name decides."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine import Engine
from service.errors import ActivationError, UnknownModelError
from service.metrics import Metrics
from service.monitoring.traffic import Traffic
from service.registry import Registry
from service.settings import load_settings
from tests.bundles import with_other_card
from tests.service.conftest import ready_client
from tests.service.test_models import version_of

TIMEOUT = 120
DIGITS = "digits"
Scenario = Callable[[], Awaitable[None]]


class Gate:
    """Bundles are loaded once it is open."""

    def __init__(self, load: Callable[..., Awaitable[Engine]]):
        self._load = load
        self.reached, self._opened = asyncio.Event(), asyncio.Event()

    async def load(self, *args: Any, **kwargs: Any) -> Engine:
        self.reached.set()
        await self._opened.wait()
        return await self._load(*args, **kwargs)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(client, monkeypatch) -> Iterator[Gate]:
    gate = Gate(Engine.load)
    monkeypatch.setattr(Engine, "load", gate.load)
    yield gate
    client.portal.call(gate.open)  # else what waits there after a failure would keep the client from closing


@pytest.fixture(scope="module")
def versions(digits_bundle: Path, tmp_path_factory) -> tuple[Path, str, str, str]:
    """A folder of two other versions; all three."""
    folder = tmp_path_factory.mktemp("models")
    others = [with_other_card(digits_bundle, folder / card, card) for card in ("second", "third")]
    return folder, *map(version_of, (digits_bundle, *others))


@pytest.fixture(scope="module")
def client(settings, versions):
    with ready_client(load_settings(**{**settings.model_dump(), "models": versions[0]})) as client:
        yield client


@pytest.fixture
def registry(client, versions) -> Registry:
    """The second version is active, the first was before, the third is not loaded."""
    registry: Registry = client.app.state.runtime.registry
    _, first, second, third = versions

    async def prepare() -> None:
        for version in (first, second):
            await registry.activate(DIGITS, version)
        if registry.is_loaded(DIGITS, third):
            await registry.unload(DIGITS, third)

    client.portal.call(prepare)
    return registry


@pytest.fixture
def run(client) -> Callable[[Scenario], None]:
    async def in_time(scenario: Scenario) -> None:
        async with asyncio.timeout(TIMEOUT):
            await scenario()

    return lambda scenario: client.portal.call(in_time, scenario)


def test_what_is_loaded_is_switched_to_while_another_loads(registry, versions, gate, run):
    _, first, second, third = versions

    async def scenario() -> None:
        loading = asyncio.create_task(registry.load(DIGITS, third))
        await gate.reached.wait()
        assert (await registry.roll_back(DIGITS)).version == first
        assert (await registry.activate(DIGITS, second)).version == second
        assert not loading.done()
        gate.open()
        assert (await loading).version == third
        assert registry.is_active(DIGITS, second)

    run(scenario)


def test_a_rollback_calls_off_what_is_being_activated(registry, versions, gate, run):
    _, first, second, third = versions

    async def scenario() -> None:
        activating = asyncio.create_task(registry.activate(DIGITS, third))
        await gate.reached.wait()
        assert (await registry.roll_back(DIGITS)).version == second
        gate.open()
        with pytest.raises(ActivationError, match="is loaded, but was called off meanwhile; activate it again"):
            await activating
        assert registry.versions(DIGITS) == [second, *sorted((first, third))]
        assert (await registry.roll_back(DIGITS)).version == first

    run(scenario)


def test_the_last_activation_decides_whichever_is_ready_first(registry, versions, gate, run):
    _, first, _, third = versions

    async def scenario() -> None:
        activating = asyncio.create_task(registry.activate(DIGITS, third))
        await gate.reached.wait()
        assert (await registry.activate(DIGITS, first)).version == first
        gate.open()
        with pytest.raises(ActivationError, match="called off"):
            await activating
        assert registry.is_active(DIGITS, first)

    run(scenario)


def test_a_later_activation_that_fails_calls_nothing_off(registry, versions, gate, run):
    _, _, second, third = versions

    async def scenario() -> None:
        activating = asyncio.create_task(registry.activate(DIGITS, third))
        await gate.reached.wait()
        failing = asyncio.create_task(registry.activate(DIGITS, "0000"))
        gate.open()
        assert (await activating).version == third
        with pytest.raises(UnknownModelError):
            await failing
        assert registry.is_active(DIGITS, third)
        assert (await registry.roll_back(DIGITS)).version == second

    run(scenario)


def test_a_version_is_loaded_once_for_all_who_ask(registry, versions, run):
    third = versions[3]

    async def scenario() -> None:
        engines = await asyncio.gather(registry.load(DIGITS, third), registry.activate(DIGITS, third))
        assert engines[0] is engines[1]

    run(scenario)


def test_what_is_being_unloaded_is_loaded_again_to_be_activated(registry, versions, run):
    third = versions[3]

    async def scenario() -> None:
        former = await registry.load(DIGITS, third)
        _, engine = await asyncio.gather(registry.unload(DIGITS, third), registry.activate(DIGITS, third))
        assert engine is not former
        assert engine is registry.engine_for(DIGITS)
        assert engine.alive
        assert not former.alive

    run(scenario)


def test_what_is_being_loaded_when_the_service_ends_is_ended_too(settings, gate):
    async def scenario() -> None:
        others = set(multiprocessing.active_children())
        registry = Registry(settings, Metrics(), Traffic())
        loading = asyncio.create_task(registry.load_default())
        await gate.reached.wait()
        closing = asyncio.create_task(registry.close())
        gate.open()
        await asyncio.gather(loading, closing)
        assert set(multiprocessing.active_children()) <= others

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT))
