"""A bundle in which every known detector decides, and images clean and not."""

import pytest
import torch
from torch import Tensor

from detectors import Screener
from detectors.fitting import fit_screener
from detectors.known import KNOWN_DETECTORS
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit


@pytest.fixture(scope="session")
def images(digits_checkpoint: Checkpoint) -> Tensor:
    """Test images, and as many of noise."""
    clean = to_unit(load_splits(digits_checkpoint.config.data).test.images)[:200]
    return torch.cat([clean, torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))])


@pytest.fixture(scope="session")
def whole_screener(digits_checkpoint: Checkpoint) -> Screener:
    screener, _, _ = fit_screener(
        digits_checkpoint,
        digits_checkpoint.config.data,
        false_alarm_rate=0.05,
        name="digits",
        device=torch.device("cpu"),
        detectors=tuple(KNOWN_DETECTORS),
    )
    return screener
