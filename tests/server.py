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

    def __init__(self, *arguments: str):
        command = [str(Path(sys.executable).with_name("lgm")), "serve", "--port", "0", "--log-format", "json"]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, object]] = []
        self.url = ""
        self._listening, self._ready = threading.Event(), threading.Event()
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

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(json.loads(line) if line.startswith("{") else {"message": line})
                if found := re.fullmatch(r"listening on (http://\S+)", str(self.lines[-1]["message"])):
                    self.url = found[1]
                    self._listening.set()
                if str(self.lines[-1]["message"]).endswith("is active"):
                    self._ready.set()
        self._listening.set()
