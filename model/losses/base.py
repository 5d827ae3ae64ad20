"""The contract of the losses that L-GM is measured against.

Legend of all their files: n inputs, k classes, d features, z (in code: labels) the true class of an input.
"""

from abc import ABC, abstractmethod
from itertools import chain
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from model.errors import ConfigurationError
from model.losses.lgm import LossTerms
from model.mixture import check_count


class RivalLoss(nn.Module, ABC):
    """A loss over features (n, d) that models no density; a classifier of its own says which class they are.

        criterion = CosFaceLoss(num_classes, num_features)
        criterion(features, labels).total.backward()
        predicted = criterion.logits(features).argmax(1)

    The answer is that of LGMLoss: total = classification + lambda_ * likelihood, batch means, the last being the
    loss's own second term (a distance to centres, a norm) or zero. What is learned stands in parameters, to be given
    to the optimiser beside the network's; loss and logits are computed in their dtype, whatever that of the features,
    autocast or not. step counts the calls in training mode with gradients enabled.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    alpha: ClassVar[float] = 0.0

    def __init__(self, num_classes: int, num_features: int, *, lambda_: float | int = 0.0):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("num_features", num_features)
        self.num_classes = num_classes
        self.num_features = num_features
        self.lambda_ = at_least_zero("weight", lambda_)
        self.step = 0

    @abstractmethod
    def _logits(self, features: Tensor) -> Tensor:
        """The logits of features that were checked, in the loss's dtype."""

    @abstractmethod
    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classification and second term, scalars, of a batch that was checked."""

    @final
    def logits(self, features: Tensor) -> Tensor:
        """Scores (n, k) of features (n, d), without margin or noise; softmax of them is the posterior.

        Raises ConfigurationError when features are not (n, d), or the loss was made half precision.
        """
        self._check_features(features, least=0)
        features = features.to(self._dtype())
        with torch.autocast(features.device.type, enabled=False):
            return self._logits(features)

    def forward(self, features: Tensor, labels: Tensor) -> LossTerms:
        """Loss of features (n, d) with labels (n,) in [0, k).

        Raises ConfigurationError when shapes do not fit, the batch is empty, the loss was made half precision, or a
        label is outside [0, k) (on a CPU; on other devices the indexing kernels assert it without a synchronisation).
        """
        self._check(features, labels)
        features = features.to(self._dtype())
        with torch.autocast(features.device.type, enabled=False):
            classification, second = self.terms(features, labels.long())
        if self.training and torch.is_grad_enabled():
            self.step += 1
        return LossTerms(torch.add(classification, second, alpha=self.lambda_), classification, second)

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _dtype(self) -> torch.dtype:
        dtype = next(chain(self.parameters(), self.buffers())).dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ConfigurationError(f"this loss holds {dtype}; keep it in float32, whatever the network computes in")
        return dtype

    def _check_features(self, features: Tensor, *, least: int) -> None:
        shape, count = tuple(features.shape), self.num_features
        if len(shape) != 2 or shape[1] != count or shape[0] < least:
            raise ConfigurationError(f"features must be (n >= {least}, {count}) for this loss, got {shape}")

    def _check(self, features: Tensor, labels: Tensor) -> None:
        self._check_features(features, least=1)
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            said = f"{labels.dtype} {tuple(labels.shape)}"
            raise ConfigurationError(f"labels must be {len(features)} integers, got {said}")
        if labels.device.type == "cpu":
            low, high = labels.aminmax()
            if low < 0 or high >= self.num_classes:
                said = f"{int(low)} to {int(high)}"
                raise ConfigurationError(f"labels must lie in [0, {self.num_classes}), got {said}")


class LinearLoss(RivalLoss):
    """A loss whose classifier is a linear layer with bias: logits f_k = <w_k, x> + b_k."""

    def __init__(self, num_classes: int, num_features: int, *, lambda_: float | int = 0.0):
        super().__init__(num_classes, num_features, lambda_=lambda_)
        self.classifier = nn.Linear(num_features, num_classes)

    @final
    def _logits(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(features)
        return scores


def at_least_zero(name: str, value: float | int) -> float:
    """The value, if it is zero or more."""
    if not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name} must be a finite number of zero or more, got {value}")
    return float(value)


def above_zero(name: str, value: float | int) -> float:
    """The value, if it is above zero."""
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a finite number above zero, got {value}")
    return float(value)


def at_most_one(name: str, value: float | int) -> float:
    """The value, if it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def zero(features: Tensor) -> Tensor:
    """The second term of a loss that has none."""
    return features.new_zeros(())
