"""A real server under flagged traffic that is killed, whose disk is full, whose database goes and comes back.

With `--log-cli-level info` each says what it counted.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.postgresql import Cluster
from tests.server import TIMEOUT, Server

logger = logging.getLogger(__name__)

BOOT = (Path(__file__).parents[1] / "samples" / "ankle-boot.png").read_bytes()
PNG = {"content-type": "image/png"}
SLOW_SECONDS = 5.0  # far more than any answer takes, far less than what a database that is gone is waited for


@contextmanager
def serving(*arguments: str, wrapper: tuple[str, ...] = ()) -> Iterator[Server]:
    server = Server("--workers", "1", "--drain-seconds", "0", *arguments, wrapper=wrapper)
    try:
        server.await_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(TIMEOUT)


class Flagged:
    """Flagged requests without pause from one thread: statuses of the answers, and the longest wait for one."""

    def __init__(self, url: str):
        self.statuses: Counter[int] = Counter()
        self.longest_seconds = 0.0
        self._url, self._ended = url, threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def __str__(self) -> str:
        return f"answers {dict(self.statuses)}, the slowest after {1e3 * self.longest_seconds:.0f} ms"

    def await_answers(self, count: int) -> None:
        goal = self.statuses.total() + count
        await_true(lambda: self.statuses.total() >= goal)

    def end(self) -> Counter[int]:
        self._ended.set()
        self._thread.join(TIMEOUT)
        return self.statuses

    def _send(self) -> None:
        with closing(HTTPConnection(self._url.removeprefix("http://"), timeout=TIMEOUT)) as client:
            while not self._ended.is_set():
                started = time.monotonic()
                try:
                    client.request("POST", "/v1/predict", body=BOOT, headers=PNG)
                    response = client.getresponse()
                    response.read()
                except OSError:  # the server was killed
                    return
                self.statuses[response.status] += 1
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)


def await_true(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def outcomes(url: str) -> dict[str, int]:
    lines = httpx.get(url + "/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("lgm_quarantine_total{")]
    return {line.split('"')[1]: int(float(line.split()[1])) for line in found}


def listed(url: str) -> list[dict[str, object]]:
    items: list[dict[str, object]] = []
    cursor: dict[str, str] = {}
    while True:
        page = httpx.get(url + "/v1/quarantine", params={"limit": 200, **cursor}, timeout=TIMEOUT).json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = {"cursor": page["next_cursor"]}


def test_what_was_listed_before_a_kill_is_there_after_it(tmp_path):
    acknowledged: set[object] = set()
    for _ in range(2):
        with serving("--state-folder", str(tmp_path)) as server:
            assert acknowledged <= {item["id"] for item in listed(server.url)}
            traffic = Flagged(server.url)
            traffic.await_answers(50)
            acknowledged |= {item["id"] for item in listed(server.url)}
            traffic.await_answers(5)
            server.process.kill()
            traffic.end()
    assert len(acknowledged) >= 60
    with serving("--state-folder", str(tmp_path)) as server:
        items = {item["id"]: item for item in listed(server.url)}
        lost = acknowledged - set(items)
        logger.info("killed twice: %d acknowledged, %d of them lost", len(acknowledged), len(lost))
        assert not lost
        for item_id in list(acknowledged)[:20]:
            image = httpx.get(f"{server.url}/v1/quarantine/{item_id}/image").content
            assert hashlib.sha256(image).hexdigest() == items[item_id]["digest"]
        assert server.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder, and the command before a command that sees a disk of 300 KiB there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    space = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    mount = f'mount -t tmpfs -o size=300k,mode=700 tmpfs {folder} && exec "$@"'
    return folder, (*space, "sh", "-c", mount, "sh")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def test_a_full_disk_costs_no_prediction_and_is_counted(small_disk):
    folder, wrapper = small_disk
    with serving("--state-folder", str(folder), wrapper=wrapper) as server:
        inside = Path(f"/proc/{server.process.pid}/root") / str(folder).lstrip("/")
        with pytest.raises(OSError, match="No space left"):
            fill(inside / "ballast")
        traffic = Flagged(server.url)
        traffic.await_answers(100)
        await_true(lambda: "lgm_quarantine_queue_depth 0.0" not in httpx.get(server.url + "/metrics").text)
        assert traffic.longest_seconds < SLOW_SECONDS
        (inside / "ballast").unlink()
        await_true(lambda: outcomes(server.url)["kept"] > 0)
        traffic.end()
        logger.info("disk full: %s; %s", traffic, outcomes(server.url))
        assert set(traffic.statuses) == {200}
        assert server.stop() == 0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="lgm-pg-"))
    yield Cluster(folder)
    shutil.rmtree(folder)


def test_a_database_that_goes_and_comes_back_costs_no_prediction_and_nothing_kept(cluster, tmp_path):
    cluster.start()
    database = cluster.new_database()
    with serving("--state-folder", str(tmp_path), "--quarantine-database", database) as server:
        traffic = Flagged(server.url)
        await_true(lambda: outcomes(server.url)["kept"] >= 20)
        before = {item["id"] for item in listed(server.url)}
        cluster.stop()
        traffic.await_answers(100)
        assert httpx.get(server.url + "/v1/quarantine", timeout=TIMEOUT).status_code == 503
        assert httpx.get(server.url + "/readyz").status_code == 200
        cluster.start()
        kept = outcomes(server.url)["kept"]
        await_true(lambda: outcomes(server.url)["kept"] > kept)
        assert set(traffic.end()) == {200}
        assert traffic.longest_seconds < SLOW_SECONDS
        assert server.stop() == 0
        told = [line["message"] for line in server.lines]
    with serving("--state-folder", str(tmp_path), "--quarantine-database", database) as server:
        after = {item["id"] for item in listed(server.url)}
        logger.info("database away: %s; %d kept in the end", traffic, len(after))
        assert before <= after
        assert len(after) == traffic.statuses[200], told
    cluster.stop()


def test_without_its_database_it_starts_and_predicts(cluster, tmp_path):
    database = f"postgresql://lgm@/nothing?host={tmp_path}"
    with serving("--state-folder", str(tmp_path), "--quarantine-database", database) as server:
        traffic = Flagged(server.url)
        traffic.await_answers(20)
        assert set(traffic.end()) == {200}
        subprocess.run(["kill", "-TERM", str(server.process.pid)], check=True)
        assert server.process.wait(TIMEOUT) == 0
