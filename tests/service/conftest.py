"""A running app over the digits bundle, sample images, and a gate that holds the device."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor

from detectors import Screener, load_bundle
from model.checkpoint import Checkpoint
from model.data import load_splits, to_unit
from service.app import create_app
from service.engine import Engine
from service.runtime import Runtime
from service.settings import Settings, load_settings

MakeClient = Callable[..., TestClient]


def png(image: Tensor) -> bytes:
    """One grey uint8 image (1, h, w) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


class Gate:
    """Holds whoever passes until opened; tells when somebody stands before it."""

    def __init__(self) -> None:
        self._reached = threading.Semaphore(0)
        self._open = threading.Event()

    def pass_through(self, *arguments: object) -> None:
        self._reached.release()
        assert self._open.wait(30), "nobody opened the gate"

    def await_arrival(self) -> None:
        assert self._reached.acquire(timeout=30), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture(scope="session")
def digits_images(digits_checkpoint: Checkpoint) -> Tensor:
    """Test images (n, 1, 8, 8) uint8 that the bundle never saw."""
    return load_splits(digits_checkpoint.config.data).test.images


@pytest.fixture(scope="session")
def digit_files(digits_images: Tensor) -> list[bytes]:
    return [png(image) for image in digits_images[:16]]


@pytest.fixture(scope="session")
def settings(digits_bundle: Path) -> Settings:
    return load_settings(bundle=digits_bundle, threads=1, max_batch_size=8)


@pytest.fixture
def make_client(digits_bundle: Path, settings: Settings) -> Iterator[MakeClient]:
    """Makes a client of an app with these settings on top, over a given screener or the bundle."""
    with ExitStack() as stack:

        def make(*, screener: Screener | None = None, **given: object) -> TestClient:
            chosen = load_settings(**{**settings.model_dump(), **given})
            runtime = Runtime(settings=chosen)
            if screener is not None:
                runtime.engine = Engine(screener, settings=chosen, metrics=runtime.metrics)
                stack.callback(runtime.engine.close)
            app = create_app(chosen, runtime=runtime)
            return stack.enter_context(TestClient(app, raise_server_exceptions=True))

        yield make


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    """An app that loaded its bundle itself, as in production."""
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def own_screener(digits_bundle: Path) -> Screener:
    """A screener that a test may spoil."""
    return load_bundle(digits_bundle)


@pytest.fixture(scope="session")
def abnormal_file(digits_screener: Screener) -> bytes:
    """Noise that the library flags."""
    noise = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flagged = digits_screener.screen(to_unit(noise)).flagged
    assert flagged.any()
    return png(noise[flagged][0])
