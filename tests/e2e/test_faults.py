"""A real server whose processes are killed, stopped and flooded, and clients that hang."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from service.batching import PATIENT_SECONDS
from tests.processes import assert_gone, family_of, workers_of
from tests.server import TIMEOUT, Server

SEVEN = (Path(__file__).parents[1] / "samples" / "seven.png").read_bytes()
POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
PNG = {"content-type": "image/png"}


@contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    server = Server("--drain-seconds", "0", *arguments)
    try:
        server.await_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(TIMEOUT)


def await_metrics(url: str, *lines: str) -> None:
    """Until the metrics say all this at once."""
    deadline = time.monotonic() + TIMEOUT
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        while not all(line in (found := client.get("/metrics").text) for line in lines):
            assert time.monotonic() < deadline, found


class Load:
    """Requests without pause from several threads; the statuses of their answers."""

    def __init__(self, url: str, *, num_clients: int = 4):
        self.statuses: Counter[int] = Counter()
        self._url = url
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(num_clients)
        self._running = [self._pool.submit(self._send) for _ in range(num_clients)]

    def await_answers(self, count: int) -> None:
        goal = self.statuses.total() + count
        while self.statuses.total() < goal:
            assert not any(running.done() for running in self._running)
            time.sleep(0.01)

    def end(self) -> Counter[int]:
        self._ended.set()
        for running in self._running:
            running.result(TIMEOUT)
        self._pool.shutdown()
        return self.statuses

    def _send(self) -> None:
        """By the plainest client there is: others spend more than the server does."""
        client = HTTPConnection(self._url.removeprefix("http://"), timeout=TIMEOUT)
        with closing(client):
            while not self._ended.is_set():
                client.request("POST", "/v1/predict", body=SEVEN, headers=PNG)
                response = client.getresponse()
                response.read()
                self.statuses[response.status] += 1


def test_killed_workers_cost_no_request():
    with serving("--workers", "2") as server:
        load = Load(server.url)
        load.await_answers(20)
        for number in range(1, 4):
            workers_of(server.process.pid)[0].kill()
            await_metrics(server.url, f"lgm_worker_restarts_total {number}.0", "lgm_worker_up 2.0")
            load.await_answers(20)
        assert set(load.end()) == {200}
        assert server.stop() == 0


def shared_memory() -> set[str]:
    """What Python and torch have there; databases and browsers of other tests come and go."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("lgm", "psm_", "pym-", "sem.", "torch_"))}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_behind(number):
    shared_before = shared_memory()
    with serving("--workers", "2") as server:
        family = family_of(server.process.pid)
        assert len(workers_of(server.process.pid)) == 2
        httpx.post(server.url + "/v1/predict", content=SEVEN, headers=PNG).raise_for_status()
        server.process.send_signal(number)
        assert server.process.wait(TIMEOUT) == (-number if number is signal.SIGKILL else 0)
        assert_gone(family)
    assert shared_memory() <= shared_before


def test_a_hung_worker_ends_with_its_server_too():
    with serving("--workers", "1") as server:
        family = family_of(server.process.pid)
        (worker,) = workers_of(server.process.pid)
        worker.suspend()
        server.process.kill()
        worker.resume()
        assert_gone(family)


def test_signals_to_the_whole_group_drain_it_too():
    """As a terminal's Ctrl-C and systemd send them."""
    with serving("--workers", "1") as server:
        load = Load(server.url, num_clients=2)
        load.await_answers(10)
        for process in family_of(server.process.pid)[1:]:
            process.terminate()
        load.await_answers(10)
        assert set(load.end()) == {200}
        assert server.stop() == 0


def test_slow_and_half_open_clients_hold_nobody_up():
    with ExitStack() as stack:
        server = stack.enter_context(serving("--workers", "1", "--request-timeout-seconds", "5"))
        address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        head = POST + b"Content-Length: 1000\r\n\r\n"
        clients = [stack.enter_context(socket.create_connection(address, timeout=TIMEOUT)) for _ in range(50)]
        for number, client in enumerate(clients):
            client.sendall(head[: 10 + 3 * number] if number % 2 else head + b"x" * number)
        with httpx.Client(base_url=server.url, headers=PNG) as client:
            assert [client.post("/v1/predict", content=SEVEN).status_code for _ in range(20)] == [200] * 20
        assert clients[0].recv(100).startswith(b"HTTP/1.1 408")
        for client in clients:
            client.close()
        assert server.stop() == 0


def test_flooded_it_refuses_answers_probes_and_goes_on_answering():
    with serving("--workers", "1", "--queue-capacity", "16", "--max-instances", "16") as server:
        flood = Load(server.url, num_clients=40)
        while min(flood.statuses[200], flood.statuses[503]) < 20:
            flood.await_answers(10)
        with httpx.Client(base_url=server.url) as client:
            for path in ("/healthz", "/readyz", "/metrics"):
                assert client.get(path).status_code == 200
        assert set(flood.end()) == {200, 503}
        assert server.stop() == 0


def test_a_caller_who_hangs_up_is_not_judged():
    with serving("--workers", "1") as server:
        (worker,) = workers_of(server.process.pid)
        worker.suspend()
        host, port = server.url.removeprefix("http://").split(":")
        head = POST + b"Content-Length: %d\r\n\r\n"
        clients = [socket.create_connection((host, int(port)), timeout=TIMEOUT) for _ in range(10)]
        for client in clients:
            client.sendall(head % len(SEVEN) + SEVEN)
        with httpx.Client(base_url=server.url) as probe:
            while "lgm_queue_depth 9.0" not in probe.get("/metrics").text:
                pass
            for client in clients:
                client.close()
            gone = time.monotonic()
            while time.monotonic() <= gone + PATIENT_SECONDS:  # before, nobody asks whether the caller has gone
                probe.get("/healthz")
            worker.resume()
            # The queue answers in its order, so this one's answer comes after whatever of the ten was judged.
            assert probe.post("/v1/predict", content=SEVEN, headers=PNG).status_code == 200
            metrics = probe.get("/metrics").text
        assert "lgm_queue_depth 0.0" in metrics
        assert "lgm_batch_size_sum 2.0" in metrics  # the one that was in the worker already, and the last
        assert server.stop() == 0


def resident_bytes(pid: int) -> int:
    total = 0
    for process in family_of(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_requests():
    with serving("--access-log-share", "0") as server:
        load = Load(server.url, num_clients=8)
        while load.statuses.total() < 10_000:
            load.await_answers(500)
        early = resident_bytes(server.process.pid)
        while load.statuses.total() < 100_000:
            load.await_answers(500)
        assert resident_bytes(server.process.pid) <= 1.05 * early
        assert set(load.end()) == {200}
        assert server.stop() == 0
