"""A private Redis that only a socket in its folder leads to."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import redis

TIMEOUT = 60


class RedisServer:
    """Started and killed as often as a test likes; without the program it is skipped, which .ci/run refuses."""

    def __init__(self, folder: Path):
        """folder: short, for a socket's path must be."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        self._program, self._folder = program, folder
        self._process: subprocess.Popen[str] | None = None
        self.url = f"unix://{folder}/redis"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                self._program,
                "--port",
                "0",
                "--unixsocket",
                f"{self._folder}/redis",
                "--save",
                "",
                "--dir",
                self._folder,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server did not start")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(TIMEOUT)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)
