"""A running app over the digits bundle with a real worker process, which can be held; sample images."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor

from detectors import Screener
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from service.app import create_app
from service.runtime import Runtime
from service.settings import Settings, load_settings

MakeClient = Callable[..., TestClient]


def png(image: Tensor) -> bytes:
    """One grey uint8 image (1, h, w) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def workers_held(client: TestClient) -> Iterator[list[int]]:
    """Meanwhile the worker processes stand still: what they are sent waits on the device."""
    pids = client.app.state.runtime.engine_for().worker_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def digits_images(digits_checkpoint: Checkpoint) -> Tensor:
    """Test images (n, 1, 8, 8) uint8 that the bundle never saw."""
    return load_splits(digits_checkpoint.config.data).test.images


@pytest.fixture(scope="session")
def digit_files(digits_images: Tensor) -> list[bytes]:
    return [png(image) for image in digits_images[:16]]


@pytest.fixture(scope="session")
def settings(digits_bundle: Path) -> Settings:
    return load_settings(bundle=digits_bundle, workers=1, threads=1, max_batch_size=8)


@pytest.fixture
def make_client(digits_bundle: Path, settings: Settings) -> Iterator[MakeClient]:
    """Makes a client of an app with these settings on top, whose model is loaded."""
    with ExitStack() as stack:

        def make(**given: object) -> TestClient:
            return stack.enter_context(ready_client(load_settings(**{**settings.model_dump(), **given})))

        yield make


@contextmanager
def ready_client(settings: Settings) -> Iterator[TestClient]:
    runtime = Runtime(settings=settings)

    async def loaded() -> None:
        assert runtime.loading is not None
        await runtime.loading

    with TestClient(create_app(settings, runtime=runtime), base_url="http://localhost") as client:
        assert client.portal is not None
        client.portal.call(loaded)
        yield client


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    with ready_client(settings) as client:
        yield client


@pytest.fixture(scope="session")
def abnormal_file(digits_screener: Screener) -> bytes:
    """Noise that the library flags."""
    noise = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flagged = digits_screener.screen(to_unit(noise)).flagged
    assert flagged.any()
    return png(noise[flagged][0])
