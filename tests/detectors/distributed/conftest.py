import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from model.checkpoint import Checkpoint
from model.data import load_splits

NUM_IMAGES = 24


@pytest.fixture
def folder(digits_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """Good files and two bad ones among them, in two folders."""
    path = tmp_path / "images"
    (path / "below").mkdir(parents=True)
    images = load_splits(digits_checkpoint.config.data).test.images
    for index in range(NUM_IMAGES):
        Image.fromarray(images[index, 0].numpy()).save(path / f"{index:02}.png")
    (path / "03-broken.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((9, 7), dtype=np.uint8)).save(path / "below" / "size.png")
    return path


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid))}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lgm-ray-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
