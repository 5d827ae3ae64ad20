"""The README's pictures, from a running service: `python -m tests.screenshots`, or `make screenshots`.

Clean MNIST images come first, then the same through a washed-out camera, then some that FGSM has attacked. It takes
about three minutes; --seconds says how long the traffic of each kind lasts.
"""

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch
from PIL import Image
from playwright.sync_api import Page
from torch import Tensor

from detectors import SHIPPED_BUNDLE, load_bundle
from detectors.perturbation import fgsm
from model.config import DataConfig
from model.data import load_splits
from model.image_set import to_unit
from tests.e2e.browser import Watched, chromium
from tests.server import Server

FOLDER = Path(__file__).parents[1] / "service" / "dashboard" / "screenshots"
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
NUM_ATTACKED = 64
EPS = 0.15
PAUSE_SECONDS = 0.02
QUALITY = 82
MOST_BYTES = 1_500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=50)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as state:
        server = Server("--workers", "1", "--drain-seconds", "0", "--state-folder", state)
        try:
            server.await_ready()
            clean, drifted, attacked = _images()
            with httpx.Client(base_url=server.url, timeout=60) as client:
                _send(client, clean, seconds=2 * seconds)
                _send(client, drifted, seconds=seconds / 2)
                _send(client, attacked, seconds=seconds / 4)
            _take_all(server.url)
        finally:
            server.stop()
    total = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    assert total < MOST_BYTES, f"the pictures take {total} bytes, the limit is {MOST_BYTES}"


def _images() -> tuple[Tensor, Tensor, Tensor]:
    """Clean, drifted and attacked, uint8 (n, 1, 28, 28)."""
    test = load_splits(DataConfig(name="mnist")).test
    images = to_unit(test.images[:NUM_ATTACKED])
    screener = load_bundle(SHIPPED_BUNDLE)
    attacked = fgsm(lambda given: screener.network(given).log_joint, images, test.labels[:NUM_ATTACKED], eps=EPS)
    drifted = 0.75 * to_unit(test.images[1000:3000]) + 0.06
    return test.images[:1000], _bytes(drifted), _bytes(attacked)


def _bytes(images: Tensor) -> Tensor:
    return images.mul(255).round().to(torch.uint8)


def _send(client: httpx.Client, images: Tensor, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    for number, image in enumerate(itertools.cycle(images)):
        client.post("/v1/predict", content=_png(image), headers={"content-type": "image/png"})
        if number % 200 == 100:
            client.post("/v1/predict", content=b"no image", headers={"content-type": "image/png"})
        if time.monotonic() > until:
            return
        time.sleep(PAUSE_SECONDS)


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _take_all(url: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        for theme in ("light", "dark"):
            watched = Watched(browser.new_context(viewport=WIDE, color_scheme=theme), url)
            for name, page in _views(watched):
                _keep(page, f"{name}-{theme}")
            watched.assert_quiet()
        watched = Watched(browser.new_context(viewport=PHONE, color_scheme="light", device_scale_factor=2), url)
        page = watched.open("/")
        page.locator(".figures").wait_for()
        _keep(page, "phone-light")


def _views(watched: Watched) -> Iterator[tuple[str, Page]]:
    page = watched.open("/")
    page.locator(".figures").wait_for()
    yield "overview", page
    watched.open("/classes").locator(".rows").last.wait_for()
    yield "classes", page
    watched.open("/drift").locator(".banner").first.wait_for()
    yield "drift", page
    watched.open("/review").get_by_text("Nearest class means").wait_for()
    yield "review", page
    watched.open("/playground").get_by_role("button", name="Sample: 7").click()
    page.locator("#eps").fill("0.2")
    page.get_by_text("Was taken for 7").wait_for()
    yield "playground", page


def _keep(page: Page, name: str) -> None:
    page.wait_for_function("[...document.images].every(image => image.complete)")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=not name.startswith("phone"))))
    shot.convert("RGB").save(FOLDER / f"{name}.webp", "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
