"""The whole way on the data that the shipped model is for: files over HTTP, against the library."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from torch import Tensor

from detectors import Screener
from model.config import parse_data_config
from model.data import load_splits
from model.image_set import ImageSet, to_unit
from tests.server import TIMEOUT

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def thousand(data_directory: Path) -> ImageSet:
    test = load_splits(parse_data_config({"name": "mnist", "directory": str(data_directory)})).test
    return test.select(torch.arange(1000))


def test_a_thousand_files_over_http(url: str, thousand: ImageSet, shipped_screener: Screener) -> None:
    with httpx.Client(base_url=url, timeout=TIMEOUT, headers={"content-type": "image/png"}) as client:

        def ask(image: Tensor) -> dict[str, Any]:
            buffer = io.BytesIO()
            Image.fromarray(image[0].numpy()).save(buffer, "PNG")
            (prediction,) = client.post("/v1/predict", content=buffer.getvalue()).json()["predictions"]
            return prediction

        with ThreadPoolExecutor(8) as callers:  # so that the service judges some together, some alone
            answers = list(callers.map(ask, thousand.images))
    images = to_unit(thousand.images)
    batched = shipped_screener.screen(images).log_likelihood
    alone = torch.cat([shipped_screener.screen(image).log_likelihood for image in images.split(1)])
    served = torch.tensor([answer["log_likelihood"] for answer in answers])
    torch.testing.assert_close(served, batched, rtol=1e-4, atol=0)
    torch.testing.assert_close(served, alone, rtol=1e-4, atol=0)
    right = [answer["class_index"] == label for answer, label in zip(answers, thousand.labels.tolist(), strict=True)]
    assert sum(right) >= 990
