"""The writing thread beside a database that comes and goes, and beside an image that nobody can keep."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from service.errors import QuarantineUnavailableError
from service.metrics import Metrics
from service.quarantine import writer as writer_module
from service.quarantine.backlog import Backlog
from service.quarantine.database import Database
from service.quarantine.quarantine import Quarantine
from service.quarantine.retention import Retention
from service.quarantine.store import Store
from service.quarantine.upkeep import Upkeep
from service.quarantine.writer import Writer
from tests.service.quarantine.test_backlog import captured

TIMEOUT = 60


class Trial:
    """A writer whose keeping does what `trouble` says, in turn, and then succeeds."""

    def __init__(self, folder, trouble: list[Exception]):
        database, store = Database(f"sqlite:///{folder}/rows.sqlite"), Store(str(folder / "files"))
        self.metrics, self.backlog = Metrics(), Backlog(capacity=100, max_bytes=10**6)
        quarantine = Quarantine(database, store)
        retention = Retention(database, store, max_items=10, max_bytes=10**6)
        self.tried = threading.Semaphore(0)
        self.trouble = trouble
        self.writer = Writer(
            self.backlog, lambda taken: [taken], self._keep, Upkeep(quarantine, retention, self.metrics), self.metrics
        )
        self.writer.start()
        self.close_database = database.close

    def _keep(self, batch) -> None:
        self.tried.release()
        trouble = self.trouble[:1]
        del self.trouble[:1]
        if trouble:
            raise trouble[0]

    def await_outcome(self, name: str, count: int) -> None:
        self._await(lambda: self.outcome(name) == count)

    def outcome(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("lgm_quarantine_total", {"outcome": name})

    def _await(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def trial(tmp_path) -> Iterator[Callable[..., Trial]]:
    made: list[Trial] = []

    def make(*trouble: Exception) -> Trial:
        made.append(Trial(tmp_path, list(trouble)))
        return made[-1]

    yield make
    for one in made:
        one.writer.close(TIMEOUT)
        one.close_database()


def test_what_fails_for_a_while_is_kept_in_the_end(trial):
    found = trial(*(QuarantineUnavailableError("gone") for _ in range(3)))
    found.backlog.put(captured(2))
    found.await_outcome("kept", 2)
    assert found.outcome("failed") == 0
    for _ in range(4):
        assert found.tried.acquire(timeout=TIMEOUT)


def test_an_outage_of_any_length_costs_nothing_while_there_is_room(trial, monkeypatch):
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0.0)
    found = trial(*(QuarantineUnavailableError("gone") for _ in range(6)))
    found.backlog.put(captured(2))
    assert found.tried.acquire(timeout=TIMEOUT)
    found.backlog.put(captured(98))
    found.await_outcome("kept", 100)
    assert found.outcome("failed") == 0


def test_the_oldest_makes_room_for_what_comes_when_the_backlog_is_full(trial, monkeypatch):
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0.0)
    found = trial(*(QuarantineUnavailableError("gone") for _ in range(1_000)))
    found.backlog.put(captured(2))
    assert found.tried.acquire(timeout=TIMEOUT)
    assert found.backlog.put(captured(101)) == 100
    found.await_outcome("failed", 2)
    found.trouble.clear()
    found.await_outcome("kept", 100)


def test_what_expires_is_forgotten_while_nothing_can_be_written(trial, monkeypatch):
    """On a full disk that is what makes room."""
    found = trial(*(QuarantineUnavailableError("full") for _ in range(1_000)))
    found.backlog.put(captured(2))
    assert found.tried.acquire(timeout=TIMEOUT)
    looked = threading.Event()
    monkeypatch.setattr(Upkeep, "look_after", lambda upkeep: looked.set())
    assert looked.wait(TIMEOUT)
    assert found.outcome("failed") == 0
    found.trouble.clear()
    found.await_outcome("kept", 2)


def test_what_nobody_can_keep_is_counted_and_costs_no_other(trial, caplog):
    found = trial(ValueError("odd"))
    found.backlog.put(captured(2))
    found.await_outcome("failed", 2)
    found.backlog.put(captured(3))
    found.await_outcome("kept", 3)
    assert "2 images were not kept" in caplog.text


def test_at_the_end_nothing_waits_for_a_database_that_is_gone(trial):
    found = trial(*(QuarantineUnavailableError("gone") for _ in range(100)))
    found.backlog.put(captured(2))
    assert found.tried.acquire(timeout=TIMEOUT)
    found.backlog.put(captured(3))
    started = time.monotonic()
    found.writer.close(TIMEOUT)
    assert time.monotonic() - started < TIMEOUT / 2
    assert (found.outcome("kept"), found.outcome("failed")) == (0, 5)
    assert found.backlog.put(captured(1)) == 0
