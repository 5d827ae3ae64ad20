"""A server with all its processes: started, awaited, watched, and ended to the last one."""

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from tests.benchmarks.serving.errors import StartError

Measured = TypeVar("Measured")
READY_SECONDS, STOP_SECONDS, WATCH_SECONDS = 300, 5, 1
LOG_END = 2_000


class ServerProcess:
    """A command in a session of its own, on the loopback, with its output in a file."""

    def __init__(
        self, command: Sequence[str], *, port: int, environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        self.port = port
        self._log, self._name = log, Path(command[0]).name
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self._root = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def await_ready(self, path: str, *, announced: str = "") -> None:
        """Ask until the answer is 200 and this text is in the output. Raises StartError with the output's end."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if get(self.port, path) == 200 and announced in self._log.read_text():
                    return
            time.sleep(0.1)
        raise StartError(f"{self._name} was not ready; its output ends with:\n{self._log.read_text()[-LOG_END:]}")

    def cpu_seconds(self) -> float:
        """Of all its processes that live, and of their children that have ended."""
        return sum(sum(times[:4]) for times in self._each(lambda process: process.cpu_times()))

    def memory_bytes(self) -> int:
        """Proportional set sizes (shared pages counted once) where the system tells them, else resident ones."""
        return sum(self._each(_memory))

    def stop(self) -> None:
        """SIGTERM to the command, as a container's end is, then SIGKILL to whatever it leaves behind."""
        tree = self._tree()
        self._process.terminate()
        _, left = psutil.wait_procs(tree, STOP_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ProcessLookupError):  # of its session, what came after the tree was looked at
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def _each(self, measure: Callable[[psutil.Process], Measured]) -> list[Measured]:
        found = []
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                found.append(measure(process))
        return found


class MemoryWatch:
    """The greatest memory of a server while the block runs."""

    def __init__(self, server: ServerProcess) -> None:
        self.peak_bytes = 0
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._server.memory_bytes())
            if self._done.wait(WATCH_SECONDS):
                return


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """In so many seconds: processor time of a server's processes, and of whatever else ran, which disturbs."""

    seconds: float
    server_cpu_seconds: float
    others_cpu_seconds: float


class ProcessorMeter:
    """What the processors do from now on; without a server all but this process are others."""

    def __init__(self, server: ServerProcess | None = None) -> None:
        self._server = server
        self._server_before, self._before = self._server_cpu_seconds(), _busy_cpu_seconds()
        self._started = time.monotonic()

    def spent(self, *, generator_cpu_seconds: float = 0) -> Spent:
        """Since it was made; the generator is not among the others."""
        server = self._server_cpu_seconds() - self._server_before
        busy = _busy_cpu_seconds() - self._before
        return Spent(
            seconds=time.monotonic() - self._started,
            server_cpu_seconds=server,
            others_cpu_seconds=max(0.0, busy - server - generator_cpu_seconds),
        )

    def _server_cpu_seconds(self) -> float:
        return 0 if self._server is None else self._server.cpu_seconds()


def _busy_cpu_seconds() -> float:
    """Of all processors, without this process."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0)) - time.process_time()


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except AttributeError:
        return int(process.memory_info().rss)


def get(port: int, path: str, *, timeout: float = 10) -> int:
    """The status of a GET over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
