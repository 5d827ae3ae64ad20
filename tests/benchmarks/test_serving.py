"""The serving benchmark: it reads what wrk prints, speaks every server's form, tells its figures, and runs."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from model.image_tensors import decode_image
from model.images import ImageFormat
from tests.benchmarks.serving import forms, tables, wrk
from tests.benchmarks.serving.asked import judge
from tests.benchmarks.serving.errors import WrkError
from tests.benchmarks.serving.forms import Answer, Said
from tests.benchmarks.serving.overload import Overload, ProbeTimes
from tests.benchmarks.serving.processes import Spent
from tests.benchmarks.serving.rounds import InProcess, Row, agree
from tests.benchmarks.serving.wrk import Load

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS = 120
needs_wrk = pytest.mark.skipif(not wrk.is_there(), reason="wrk is not installed")

PRINTED = """\
Running 1s test @ http://127.0.0.1:8000
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    41.83ms   11.61ms 104.80ms   82.23%
    Req/Sec   740.00    106.97     0.88k    63.64%
  812 requests in 1.10s, 0.87MB read
  Non-2xx or 3xx responses: 12
Requests/sec:    738.02
Transfer/sec:    812.67KB
{"seconds": 1.100239, "requests": 812, "status_errors": 12, "socket_errors": 3, "timeouts": 1, \
"p50_ms": 40.112, "p99_ms": 98.001, "max_ms": 104.803, "ok": 0, "refused": 0, "failed": 0}
"""
SAID = [Said(7, -61.125, 0.9375), Said(2, -70.5, 0.25)]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load(**changed: float) -> Load:
    return replace(wrk.parse(PRINTED, generator_cpu_seconds=0.11), **changed)  # type: ignore[arg-type]


def row(server: str, number: int = 0, *, images: int = 1, connections: int = 32, **changed: float) -> Row:
    return Row(
        round=number,
        server=server,
        form="a PNG file",
        images=images,
        connections=connections,
        load=load(seconds=1, status_errors=0, **changed),
        spent=Spent(seconds=1, server_cpu_seconds=1.5, others_cpu_seconds=0.25),
        peak_bytes=512 * 1024 * 1024,
    )


def overloaded(factor: float = 2, **changed: float) -> Overload:
    slow = ProbeTimes(count=50, failed=0, p99_ms=9, max_ms=90)
    return Overload(
        factor=factor,
        asked_rate=1600,
        peak=800,
        load=load(seconds=1, **({"requests": 1600, "ok": 760, "refused": 840} | changed)),
        spent=Spent(seconds=1, server_cpu_seconds=1.5, others_cpu_seconds=0),
        probes={"/healthz": slow},
        recovery_seconds=0.5,
    )


def printed(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_wrk_is_read():
    found = load()
    assert found.requests_per_second == pytest.approx(800 / 1.100239)
    assert (found.p50_ms, found.p99_ms) == (40.112, 98.001)
    assert (found.status_errors, found.socket_errors, found.timeouts) == (12, 3, 1)
    assert found.generator_cpu_seconds == 0.11


def test_wrk_without_figures_is_an_error():
    with pytest.raises(WrkError, match="no figures: unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1", generator_cpu_seconds=0)


def test_a_png_body_decodes_to_its_image(images: torch.Tensor):
    found = [decode_image(body, ImageFormat(shape=(1, 8, 8))) for body in forms.png_file("/").bodies(images, size=1)]
    assert torch.equal(torch.stack(found), images)


def test_a_colour_image_becomes_a_png():
    colours = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    assert torch.equal(decode_image(forms.png(colours), ImageFormat(shape=(3, 4, 4))), colours)


def test_binary_tensors_say_where_their_json_ends(images: torch.Tensor):
    form = forms.binary_tensors("/v2/models/digits/infer", size=2, shape=(1, 8, 8))
    (body,) = form.bodies(images, size=2)
    length = int(form.headers[forms.HEADER_LENGTH])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert tensor["shape"] == [2, 1, 8, 8]
    assert tensor["parameters"]["binary_data_size"] == len(body) - length
    found = np.frombuffer(body[length:], np.float32).reshape(2, 1, 8, 8)
    assert found == pytest.approx(images.numpy() / 255, abs=1e-7)


@pytest.mark.parametrize("wrapped", [lambda said: {"predictions": said}, lambda said: [[said[0]], [said[1]]]])
def test_predictions_are_read(wrapped):
    answer = json.dumps(wrapped([{**said._asdict(), "label": "7"} for said in SAID])).encode()
    assert forms.read_predictions(Answer(answer)) == SAID


def test_tensors_are_read_from_json_and_binary_alike():
    columns = dict(zip(Said._fields, zip(*SAID, strict=True), strict=True))
    kinds = {"class_index": ("INT64", np.int64), "log_likelihood": ("FP32", np.float32)}
    outputs, binary = [], b""
    for name, values in columns.items():
        datatype, kind = kinds.get(name, ("FP32", np.float32))
        content = np.asarray(values, kind).tobytes()
        outputs.append({"name": name, "datatype": datatype, "parameters": {"binary_data_size": len(content)}})
        binary += content
    head = json.dumps({"outputs": outputs}).encode()
    assert forms.read_tensors(Answer(head + binary, len(head))) == SAID
    plain = [{"name": name, "data": values} for name, values in columns.items()]
    assert forms.read_tensors(Answer(json.dumps({"outputs": plain}).encode())) == SAID


def test_answers_agree_only_if_all_that_is_said_does():
    assert agree(SAID, [Said(7, -61.1251, 0.9376), SAID[1]])
    assert not agree(SAID, SAID[:1])
    for wrong in (Said(1, -61.125, 0.9375), Said(7, -62, 0.9375), Said(7, -61.125, 0.95)):
        assert not agree([wrong, SAID[1]], SAID)


def test_a_failed_probe_is_counted_and_a_slow_one_told():
    times = ProbeTimes.of([1.0] * 98 + [50.0, 200.0, None])
    assert (times.count, times.failed, times.p99_ms, times.max_ms) == (101, 1, 50, 200)
    assert ProbeTimes.of([None]).failed == 1


def test_what_is_asked_is_judged_round_by_round():
    rows = [
        row("lgm-guard", 0, requests=1500, p99_ms=50.0),
        row("LitServe", 0, requests=500, p99_ms=100.0),
        row("lgm-guard", 1, requests=1800, p99_ms=90.0),
        row("LitServe", 1, requests=1000, p99_ms=60.0),
        row("lgm-guard", connections=1, p50_ms=2.0),
        row("FastAPI", connections=1, p50_ms=2.5),
        row("LitServe", connections=1, p50_ms=1.6),
        row("lgm-guard", images=64, connections=1, requests=30),
        row("lgm-guard", images=64, connections=4, requests=36),
    ]
    in_process = [InProcess(images_per_second=64 * 40, others_cores=0)] * 2
    found = judge(rows, in_process, [overloaded()])
    figures = {asked.what.split(",")[0]: asked for asked in found}
    assert [(asked.figures, asked.reached) for asked in found[:4]] == [
        ((3.0, 1.8), True),
        ((0.5, 1.5), True),
        ((1.25,), False),
        ((0.9,), True),
    ]
    assert figures["slowest probe in ms"].figures == (90,)


def test_goodput_under_overload_is_set_against_the_most_of_all_scheduled_loads():
    found = judge(
        [], [], [overloaded(0.9, ok=800), overloaded(1, ok=790), overloaded(2, ok=760), overloaded(4, ok=700)]
    )
    goodput = {asked.what: asked for asked in found if asked.what.startswith("goodput")}
    assert [(asked.figures, asked.reached) for asked in goodput.values()] == [((0.95,), True), ((0.875,), False)]


@pytest.mark.parametrize("milliseconds", [[None, 1.0], []])
def test_a_probe_that_failed_or_was_not_asked_is_no_fast_one(milliseconds: list[float | None]):
    overload = replace(overloaded(), probes={"/readyz": ProbeTimes.of(milliseconds)})
    assert not judge([], [], [overload])[-1].reached


def test_who_answers_nothing_is_not_the_fastest():
    silent = {"connections": 1, "requests": 0, "p50_ms": 0.0}
    (asked,) = judge([row("lgm-guard", connections=1, p50_ms=2.0), row("MLServer", **silent)], [], [])
    assert asked.figures == (0,)
    (asked,) = judge([row("lgm-guard", **silent), row("MLServer", connections=1, p50_ms=2.0)], [], [])
    assert not asked.reached


def test_what_was_not_measured_is_not_judged():
    assert judge([row("FastAPI")], [], []) == []


def test_the_tables_tell_the_figures():
    told = printed(tables.loads([row("LitServe", number, requests=500 + 100 * number) for number in range(3)]))
    assert "600 (500-700)" in told
    assert "0 / 12" in told  # three rounds of three socket errors and a timeout
    assert "1.50 (1.50-1.50)" in told
    assert "0.25 (0.25-0.25)" in told
    assert "512" in told
    assert "1.00" in printed(tables.processor([row("LitServe", requests=1500)]))
    told = printed(tables.overloads([overloaded()]))
    assert "2 x 800" in told
    assert "95%" in told
    assert "/healthz 9 / 90 (0 of 50)" in told
    slow = replace(overloaded(), probes={"/readyz": ProbeTimes.of([101.0])})
    reached, missed = (line for line in printed(tables.verdicts(judge([], [], [slow]))).splitlines() if "│" in line)
    assert "yes" in reached
    assert "NO" in missed


class Alternating(BaseHTTPRequestHandler):
    """Answers 200 and 503 in turn, and keeps the bodies."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            self.bodies.append(body)
            status = 503 if len(self.bodies) % 2 else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing: there are hundreds."""


@needs_wrk
def test_a_schedule_is_kept_its_answers_told_apart_and_all_bodies_sent(images: torch.Tensor, tmp_path: Path):
    form = forms.png_file("/v1/predict")
    bodies = form.bodies(images, size=1)
    wrk.write_plan(tmp_path / "plan", form, bodies)
    with ThreadingHTTPServer(("127.0.0.1", 0), Alternating) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = wrk.run(url, tmp_path / "plan", connections=4, seconds=2, rate=50)
        server.shutdown()
    due = 50 * found.seconds
    assert 0.6 * due <= found.requests <= due + 1  # a slow machine may be late, none is early
    assert found.ok + found.refused == found.requests
    assert abs(found.ok - found.refused) <= 5  # up to four answers are still under way
    assert found.failed == found.socket_errors == 0
    assert found.status_errors == found.refused
    assert set(Alternating.bodies) == set(bodies)


@pytest.mark.slow
@needs_wrk
def test_a_tiny_run_measures_a_real_server(digits_bundle: Path, tmp_path: Path):
    command = [sys.executable, "-m", "tests.benchmarks.serving", "--bundle", str(digits_bundle), "--data", "digits"]
    command += ["--servers", "lgm-guard", "--connections", "2", "--batch-connections", "1", "--seconds", "1"]
    command += ["--rounds", "1", "--factors", "0.5", "--json", str(tmp_path / "serving.json")]
    finished = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "serving.json").read_text())
    assert [(one["images"], one["connections"]) for one in found["rows"]] == [(1, 2), (64, 1)]
    for one in found["rows"]:
        assert one["load"]["requests"] > 0
        assert one["load"]["status_errors"] == one["load"]["socket_errors"] == 0
        assert one["spent"]["server_cpu_seconds"] > 0
        assert one["peak_bytes"] > 1_000_000
    (half,) = found["overloads"]
    assert half["load"]["ok"] + half["load"]["refused"] == half["load"]["requests"] > 0
    assert {probe["failed"] for probe in half["probes"].values()} == {0}
    assert "images a second in batches" in finished.stdout


def test_an_unknown_server_is_named():
    command = [sys.executable, "-m", "tests.benchmarks.serving", "--servers", "Apache"]
    finished = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert finished.returncode != 0
    assert "unknown server 'apache'" in finished.stderr
