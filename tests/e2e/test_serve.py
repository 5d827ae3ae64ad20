"""A real `lgm serve`: start, ready, answers, SIGTERM under load."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from detectors import Screener
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from tests.server import TIMEOUT, Server

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def server(digits_bundle: Path) -> Iterator[Server]:
    server = Server("--bundle", str(digits_bundle), "--drain-seconds", "1")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait(TIMEOUT)


@pytest.fixture
def digit_files(digits_checkpoint: Checkpoint) -> list[bytes]:
    files = []
    for image in load_splits(digits_checkpoint.config.data).test.images[:20]:
        buffer = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def test_from_start_to_end(
    server: Server, digit_files: list[bytes], digits_screener: Screener, digits_checkpoint: Checkpoint
):
    with httpx.Client(base_url=server.await_ready(), timeout=TIMEOUT) as client:
        assert client.get("/readyz").json()["model"]["version"] == digits_screener.version
        answers = [
            client.post("/v1/predict", content=file, headers={"content-type": "image/png"}).json()
            for file in digit_files
        ]
        images = to_unit(load_splits(digits_checkpoint.config.data).test.images[:20])
        expected = digits_screener.screen(images).log_likelihood.tolist()
        found = [answer["predictions"][0]["log_likelihood"] for answer in answers]
        assert found == pytest.approx(expected, rel=1e-4)
        assert client.post("/v1/predict", content=b"x" * 20_000_000).status_code == 415
        too_large = client.post("/v1/predict", content=b"x" * 20_000_000, headers={"content-type": "image/png"})
        assert too_large.status_code == 413
        assert "lgm_images_total" in client.get("/metrics").text
        mapped = [Path(region.path).name for region in psutil.Process(server.process.pid).memory_maps()]
        assert not [name for name in mapped if name.startswith("libtorch")], "its workers have torch; it needs none"
    assert server.stop() == 0
    served = [line for line in server.lines if line.get("route") == "/v1/predict"]
    assert {line["request_id"] for line in served} >= {answer["request_id"] for answer in answers}


def test_sigterm_under_load_fails_no_request(server: Server, digit_files: list[bytes]):
    url = server.await_ready()
    sending = threading.Semaphore(0)

    def send_until_not_ready(worker: int) -> list[int]:
        """As behind a load balancer: no new request once the service says that it is not ready."""
        statuses = []
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            while client.get("/readyz").status_code == 200:
                file = digit_files[(worker + len(statuses)) % len(digit_files)]
                response = client.post("/v1/predict", content=file, headers={"content-type": "image/png"})
                statuses.append(response.status_code)
                sending.release()
        return statuses

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(send_until_not_ready, worker) for worker in range(4)]
        for _ in range(40):
            assert sending.acquire(timeout=TIMEOUT)
        assert server.stop() == 0
        statuses = [status for load in loads for status in load.result(TIMEOUT)]
    assert len(statuses) >= 40
    assert set(statuses) == {200}
    assert [line for line in server.lines if line["level"] not in ("info", "warning")] == []
