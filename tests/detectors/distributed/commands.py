"""`lgm` as a person runs it: in a process group of its own, that can be killed."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

TIMEOUT = 600  # of a machine that has much else to do


class Command(threading.Thread):
    """The command, and what it has said."""

    def __init__(self, *arguments: object, environment: dict[str, str]):
        super().__init__()
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("lgm")), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""
        self.start()

    def run(self) -> None:
        self.said = self.process.communicate()[0]

    def reaches(self, place: Callable[[], bool]) -> None:
        """Until it has come so far."""
        while not place() and self.process.poll() is None:
            threading.Event().wait(0.005)
        if self.process.poll() is not None:
            self.join(TIMEOUT)
            raise AssertionError(f"it ended too early to be killed: {self.said}")

    def end(self) -> int:
        self.join(TIMEOUT)
        assert not self.is_alive(), "it does not end"
        return self.process.wait()
