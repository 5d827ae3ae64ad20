"""Losses of pytorch-metric-learning without it."""

import sys

import pytest

from model.errors import ConfigurationError
from model.losses import CosFaceLoss, LSoftmaxLoss, NormFaceLoss, SoftmaxLoss, TripletLoss


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pytorch_metric_learning", "pytorch_metric_learning.losses", "pytorch_metric_learning.distances"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("kind", [CosFaceLoss, LSoftmaxLoss, NormFaceLoss, TripletLoss])
def test_a_library_that_is_missing_is_named(kind: type) -> None:
    with pytest.raises(ConfigurationError, match=r"needs pytorch-metric-learning: pip install 'lgm-guard\[train\]'"):
        kind(3, 2)


def test_other_losses_need_no_library() -> None:
    assert SoftmaxLoss(3, 2).num_classes == 3
