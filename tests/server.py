"""A real `lgm serve` in a process of its own."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

TIMEOUT = 120


class Server:
    """`lgm serve` in a process of its own; its log is read as it comes."""

    def __init__(self, *arguments: str, wrapper: tuple[str, ...] = ()):
        """wrapper: a command that becomes the one behind it."""
        command = [
            *wrapper,
            str(Path(sys.executable).with_name("lgm")),
            "serve",
            "--port",
            "0",
            "--log-format",
            "json",
        ]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, object]] = []
        self.url = ""
        self.grpc_address = ""  # known before the url, where there is a gRPC server
        self._listening, self._ready = threading.Event(), threading.Event()
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def await_url(self) -> str:
        assert self._listening.wait(TIMEOUT), "it did not start in time"
        assert self.url, self.lines
        return self.url

    def await_ready(self) -> str:
        """Its address, once it takes traffic."""
        assert self._ready.wait(TIMEOUT), self.lines
        return self.await_url()

    def await_lines(self, count: int, **members: object) -> list[dict[str, object]]:
        """The lines with these members, once there are so many: a call is logged after it is answered."""

        def found() -> list[dict[str, object]]:
            return [line for line in self.lines if members.items() <= line.items()]

        with self._grown:
            assert self._grown.wait_for(lambda: len(found()) >= count, TIMEOUT), self.lines
        return found()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._grown:
                    self.lines.append(json.loads(line) if line.startswith("{") else {"message": line})
                    self._grown.notify_all()
                if found := re.fullmatch(r"listening for gRPC on (\S+)", str(self.lines[-1]["message"])):
                    self.grpc_address = found[1]
                if found := re.fullmatch(r"listening on (https?://\S+)", str(self.lines[-1]["message"])):
                    self.url = found[1]
                    self._listening.set()
                if str(self.lines[-1]["message"]).endswith("is active"):
                    self._ready.set()
        self._listening.set()
