"""The monitor of a real server, over HTTP."""

import json
import time
from pathlib import Path

import httpx

from service.monitoring.pulse import MOST_LISTENERS
from service.monitoring.snapshot import Snapshot
from tests.server import TIMEOUT, Server

SAMPLES = Path(__file__).parents[1] / "samples"


def judge(url: str, name: str) -> None:
    content = (SAMPLES / name).read_bytes()
    answer = httpx.post(f"{url}/v1/predict", content=content, headers={"content-type": "image/png"}, timeout=TIMEOUT)
    assert answer.status_code == 200


def look(url: str) -> Snapshot:
    return Snapshot.model_validate_json(httpx.get(f"{url}/v1/monitor", timeout=TIMEOUT).content)


def test_what_was_judged_is_told_at_once_and_streamed(shipped_server: Server) -> None:
    url = shipped_server.url
    while not (before := look(url)).models:  # one a second: the last may be older than the model
        pass
    for name in ("seven.png", "ankle-boot.png"):
        judge(url, name)
    with httpx.stream("GET", f"{url}/v1/monitor/stream", timeout=TIMEOUT) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        told = [Snapshot.model_validate_json(next(lines)) for _ in range(3)]
    last = told[-1]
    assert [snapshot.time for snapshot in told] == sorted({snapshot.time for snapshot in told})
    (model,), (earlier,) = last.models, before.models
    assert (model.name, model.default, model.workers_up) == ("mnist", True, 1)
    assert model.flagged.hour.num_images == earlier.flagged.hour.num_images + 2
    assert model.flagged.hour.num_flagged == earlier.flagged.hour.num_flagged + 1
    assert sum(last.traffic.requests) >= sum(before.traffic.requests) + 2
    assert last.lately.latency_p50_seconds is not None
    assert model.calibration.created is not None
    assert model.classes[7].log_likelihood.live is not None


def test_a_streams_head_ends_and_takes_no_listeners_place(shipped_server: Server) -> None:
    with httpx.Client(base_url=shipped_server.url, limits=httpx.Limits(max_connections=1), timeout=TIMEOUT) as client:
        for _ in range(MOST_LISTENERS + 1):
            response = client.head("/v1/monitor/stream")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
        assert client.get("/healthz").status_code == 200


def test_open_streams_do_not_hold_up_the_end() -> None:
    server = Server("--workers", "1", "--drain-seconds", "0")
    try:
        url = server.await_ready()
        with httpx.stream("GET", f"{url}/v1/monitor/stream", timeout=TIMEOUT) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: snapshot"
            json.loads(next(lines).removeprefix("data: "))
            started = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - started < 20  # and not the 30 that requests may take to end
            assert list(lines)[-1] == ""
    finally:
        server.process.kill()
