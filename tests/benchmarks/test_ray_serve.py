"""The benchmark of Ray Serve: its ratios are of one round, and it runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.ray_serve import BASELINE, CONTENDERS, ratios
from tests.benchmarks.serving import wrk
from tests.benchmarks.serving.processes import Spent
from tests.benchmarks.serving.rounds import Row

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS = 1_800
LOAD = wrk.Load(
    seconds=1,
    requests=100,
    status_errors=0,
    socket_errors=0,
    timeouts=0,
    p50_ms=2,
    p99_ms=4,
    max_ms=5,
    ok=0,
    refused=0,
    failed=0,
    generator_cpu_seconds=0,
)


def row(server: str, number: int, *, requests: int) -> Row:
    return Row(
        round=number,
        server=server,
        form="a PNG file",
        images=1,
        connections=8,
        load=replace(LOAD, requests=requests),
        spent=Spent(seconds=1, server_cpu_seconds=1, others_cpu_seconds=0),
        peak_bytes=requests,
    )


def test_a_ratio_is_of_one_round_with_its_range():
    rows = [row(BASELINE.name, 0, requests=100), row(BASELINE.name, 1, requests=400)]
    rows += [row("Ray Serve, 1", 0, requests=50), row("Ray Serve, 1", 1, requests=300)]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(ratios(rows))
    (line,) = [line for line in capture.get().splitlines() if "Ray Serve" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    rates, same = "0.62 (0.50-0.75)", "1.00 (1.00-1.00)"
    assert cells == ["Ray Serve, 1", "8", rates, same, same, rates, "1.67 (1.33-2.00)"]


@pytest.mark.slow
@pytest.mark.skipif(not wrk.is_there(), reason="wrk is not installed")
def test_a_tiny_run_measures_every_contender(digits_bundle: Path, tmp_path: Path):
    command = [sys.executable, "-m", "tests.benchmarks.ray_serve", "--bundle", str(digits_bundle), "--data", "digits"]
    command += ["--connections", "2", "--seconds", "1", "--rounds", "1", "--json", str(tmp_path / "figures.json")]
    finished = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [one["server"] for one in rows] == [contender.name for contender in CONTENDERS]
    for one in rows:
        assert one["load"]["requests"] > 0
        assert one["load"]["status_errors"] == one["load"]["socket_errors"] == 0
        assert one["spent"]["server_cpu_seconds"] > 0
