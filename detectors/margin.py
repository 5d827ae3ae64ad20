"""The margin detector: how close the input lies to the border between two classes."""

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence


class MarginDetector(Detector):
    """score = log p(second | x) - log p(first | x), in nats, at most zero: the negative posterior margin.

    Attacks that look for the least change of an image (DeepFool, Carlini & Wagner) stop as soon as the label flips,
    so close behind the border that clean inputs, also doubtful ones, hardly ever lie there. The most probable class
    may be as improbable for a doubtful input that three classes claim, which is why this separates such attacks where
    the maximum probability does not. It says nothing of inputs that were pushed further. Needs two classes or more;
    there is nothing to fit.
    """

    name = "margin"

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "MarginDetector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "MarginDetector":
        return cls()

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        first, second = evidence.log_joint.topk(2, dim=1).values.unbind(1)
        return second - first
