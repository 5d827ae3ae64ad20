"""The confidence detector: the maximum softmax probability (Hendrycks & Gimpel, ICLR 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence


class ConfidenceDetector(Detector):
    """score = log(1 - max_k p(k | x)), in nats, at most zero; orders inputs as 1 - max_k p(k | x) does.

    1 - p has no resolution left in float32 where p is near one, so it is taken in the log domain: logsumexp over
    the other classes less logsumexp over all. Needs two classes or more. There is nothing to fit.
    """

    name = "confidence"

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "ConfidenceDetector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "ConfidenceDetector":
        return cls()

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        others = evidence.log_joint.scatter(1, evidence.class_index.unsqueeze(1), -torch.inf)
        return others.logsumexp(1) - evidence.log_joint.logsumexp(1)
