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
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_TMPDIR": str(folder),
            # On a machine that has much else to do, what starts slowly is not dead.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(TIMEOUT),
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(TIMEOUT),
        }
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1", "--port", self.address.rpartition(":")[2]),
            *("--num-cpus", str(num_cpus), "--object-store-memory", "100000000", "--include-dashboard", "false"),
            *("--disable-usage-stats", "--temp-dir", str(folder)),
        ]
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._await()

    def kill(self) -> None:
        """The whole head node at once, as when its machine is lost."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def _await(self) -> None:
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the Ray cluster did not start")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
