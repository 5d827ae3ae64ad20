"""The margin detector: how close the input lies to the border between two classes."""

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence

LEAST_MARGIN = 1e-3  # nats: below it, the rounding of float32 log-densities begins to show


class MarginDetector(Detector):
    """score = -log(log p(first | x) - log p(second | x)): the negative logarithm of the posterior margin in nats.

    Attacks that look for the least change of an image (DeepFool, Carlini & Wagner) stop as soon as the label flips,
    so close behind the border that clean inputs, also doubtful ones, hardly ever lie there. The most probable class
    may be as improbable for a doubtful input that three classes claim, which is why this separates such attacks where
    the maximum probability does not. Near the border clean margins are about uniform, so the logarithm's tail is
    exponential, as the fusion assumes: a tenth of the margin is ten times as surprising, where the margin itself ends
    at zero with nothing left to tell. It says nothing of inputs that were pushed further. Needs two classes or more;
    there is nothing to fit. The score is at most -log LEAST_MARGIN = 6.9, the one of a tie.
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
        return -(first - second + LEAST_MARGIN).log()
