"""wrk, the load generator: what it is told, and what it found."""

import json
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.serving.errors import WrkError
from tests.benchmarks.serving.forms import Form

SCRIPT = Path(__file__).with_name("wrk.lua")
ANSWER_TIMEOUT_SECONDS = 30
GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What wrk found. Requests are answered ones, whatever their status.

    Latencies are of all answered requests. ok, refused (503) and failed are counted on a schedule only.
    """

    seconds: float
    requests: int
    status_errors: int
    socket_errors: int
    timeouts: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    ok: int
    refused: int
    failed: int
    generator_cpu_seconds: float

    @property
    def requests_per_second(self) -> float:
        """Answered with success."""
        return (self.requests - self.status_errors) / self.seconds


def require() -> None:
    """Raises WrkError where wrk is not there."""
    if not is_there():
        raise WrkError("wrk, the load generator, is not there: apt-get install wrk, or brew install wrk")


def is_there() -> bool:
    return shutil.which("wrk") is not None


def write_plan(path: Path, form: Form, bodies: Sequence[bytes]) -> None:
    """Path, headers, an empty line, then each body after a line with its size; wrk.lua reads it."""
    head = [form.path, *(f"{name}: {value}" for name, value in form.headers.items()), "", ""]
    with path.open("wb") as plan:
        plan.write("\n".join(head).encode())
        for body in bodies:
            plan.write(b"%d\n" % len(body) + body)


def run(
    url: str,
    plan: Path,
    *,
    connections: int,
    seconds: int,
    rate: float | None = None,
    seed: int | None = None,
) -> Load:
    """A closed loop over so many connections, or an open one at so many requests a second. Raises WrkError.

    seed: the open loop's moments are independent then (a Poisson process).
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{ANSWER_TIMEOUT_SECONDS}s", "--script", str(SCRIPT), url, "--", str(plan)]
    before = _children_cpu_seconds()
    finished = subprocess.run(
        command + [f"{given}" for given in (rate, seed) if rate is not None and given is not None],
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        raise WrkError(f"wrk failed: {(finished.stderr or finished.stdout).strip()}")
    return parse(finished.stdout, generator_cpu_seconds=_children_cpu_seconds() - before)


def parse(printed: str, *, generator_cpu_seconds: float) -> Load:
    """The line of JSON among what wrk prints itself. Raises WrkError where there is none."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise WrkError(f"wrk printed no figures: {printed.strip()}")
    return Load(**json.loads(lines[-1]), generator_cpu_seconds=generator_cpu_seconds)


def _children_cpu_seconds() -> float:
    """Of processes that have ended; while wrk runs, no other of ours does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
