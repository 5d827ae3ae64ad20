"""A private Ray cluster of this machine: one head node, that ends with its test."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 120


class RayCluster:
    def __init__(self, folder: Path, *, num_cpus: int = 2):
        """folder: of its session, whose sockets' paths must be short."""
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / "start.log"
        self.environment = {**os.environ, **ray_environment(folder)}
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1", "--port", self.address.rpartition(":")[2]),
            *("--num-cpus", str(num_cpus), "--object-store-memory", "100000000", "--include-dashboard", "false"),
            *("--disable-usage-stats", "--temp-dir", str(folder)),
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._await()

    def kill(self) -> None:
        """The whole head node at once, as when its machine is lost."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def _await(self) -> None:
        """Until its node takes drivers, some time after its port does."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            if "Ray runtime started" in self._log.read_text():
                return
            time.sleep(0.1)
        raise AssertionError(f"the Ray cluster did not start:\n{self._log.read_text()}")


def ray_environment(folder: Path) -> dict[str, str]:
    """What keeps a Ray to itself; folder: of its session."""
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_TMPDIR": str(folder),
        "RAY_worker_niceness": "0",  # else 15, and whatever else the machine does comes first
        # On a machine that has much else to do, what starts slowly is not dead.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(TIMEOUT),
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(TIMEOUT),
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
