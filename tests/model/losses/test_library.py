"""Losses of pytorch-metric-learning without it."""

import sys

import pytest

from model.errors import ConfigurationError
from model.losses import CosFaceLoss, LSoftmaxLoss, NormFaceLoss, SoftmaxLoss, TripletLoss


@pytest.mark.parametrize("kind", [CosFaceLoss, LSoftmaxLoss, NormFaceLoss, TripletLoss])
def test_a_library_that_is_missing_is_named(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ConfigurationError, match=r"needs pytorch-metric-learning: pip install 'lgm-guard\[train\]'"):
        kind(3, 2)


def test_other_losses_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert SoftmaxLoss(3, 2).num_classes == 3
