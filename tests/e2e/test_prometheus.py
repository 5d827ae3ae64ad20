"""A real Prometheus with the rules of deploy/ over a real server: clean traffic, an attack, clean traffic again.

Windows and scrapes are seconds here, where the rules have minutes; nothing else of them is changed.
"""

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detectors import Screener
from model.image_set import to_unit
from tests.server import Server

DEPLOY = Path(__file__).parents[2] / "deploy"
PANELS = json.loads((DEPLOY / "grafana" / "dashboards" / "lgm-guard.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"].replace("$instance", ".+")
    for panel in PANELS
    for target in panel.get("targets", ())
    if not re.search("DCGM_", target["expr"])  # of another exporter
}
PATIENCE = 120


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=PATIENCE).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def fires(self, alert: str) -> bool:
        return bool(self.query(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


def hurried(text: str) -> str:
    """The same rules over seconds. An hour's windows stay longer than those of five minutes."""
    text = text.replace("[5m]", "[5s]").replace("[1h]", "[10s]").replace("[15m]", "[10s]")
    return re.sub(r"for: \d+[mh]", "for: 1s", text)


@pytest.fixture(scope="module")
def prometheus(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "rules.yml").write_text(hurried((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")))
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    configuration = configuration.replace("15s", "500ms").replace("lgm-guard:8000", url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(configuration)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            watching = Prometheus(f"http://127.0.0.1:{port}")
            until(lambda: answers(f"{watching.url}/-/ready"))
            yield watching
        finally:
            process.terminate()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def until(happened: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Asks on and on; what is done meanwhile takes the time."""
    given_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < given_up, "it did not happen in time"
        meanwhile()


@pytest.fixture(scope="module")
def clean(shipped_screener: Screener) -> NDArray[np.float32]:
    assert shipped_screener.reference is not None
    images = to_unit(shipped_screener.reference.images)
    unflagged = images[~shipped_screener.screen(images).flagged]
    assert len(unflagged) > 12
    return unflagged.numpy()


@pytest.fixture(scope="module")
def attacked(shipped_screener: Screener, clean: NDArray[np.float32]) -> NDArray[np.float32]:
    """One step along the gradient's sign (FGSM) at eps 0.2, against the label."""
    images = torch.from_numpy(clean).clone().requires_grad_()
    log_joint = shipped_screener.network(images).log_joint
    torch.nn.functional.cross_entropy(log_joint, log_joint.argmax(1)).backward()
    assert images.grad is not None
    found = (images + 0.2 * images.grad.sign()).clamp(0, 1).detach()
    assert shipped_screener.screen(found).flagged.float().mean() > 0.5
    return found.numpy()


@dataclass(frozen=True)
class Traffic:
    url: str

    def send(self, images: NDArray[np.float32]) -> None:
        tensor = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}]}).encode()
        answer = httpx.post(
            f"{self.url}/v2/models/mnist/infer",
            content=head + images.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(head))},
            timeout=PATIENCE,
        )
        assert answer.status_code == 200

    def send_nonsense(self) -> None:
        assert httpx.post(f"{self.url}/v1/predict", content=b"nonsense", timeout=PATIENCE).status_code == 415


def test_every_panel_has_data_and_an_attack_calls_somebody(
    prometheus: Prometheus, shipped_server: Server, clean: NDArray[np.float32], attacked: NDArray[np.float32]
) -> None:
    traffic = Traffic(shipped_server.url)

    def send_clean() -> None:
        traffic.send(clean)
        traffic.send_nonsense()

    without_data = set(QUERIES)

    def every_panel_has_data() -> bool:
        without_data.difference_update([name for name in without_data if prometheus.query(QUERIES[name])])
        return not without_data

    until(every_panel_has_data, send_clean)
    assert not prometheus.fires("LgmFlaggedOverPromise")
    until(lambda: prometheus.fires("LgmFlaggedOverPromise"), lambda: traffic.send(attacked))
    until(lambda: not prometheus.fires("LgmFlaggedOverPromise"), send_clean)
    level = httpx.get(f"{shipped_server.url}/v1/monitor", timeout=PATIENCE).json()["level"]
    assert level == "alarm"  # its own test looks at minutes
