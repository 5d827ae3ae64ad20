"""The likelihood detector: how unlikely features are under the mixture that they were trained to follow."""

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence
from model import gaussian


class LikelihoodDetector(Detector):
    """score = -log p(x) = -logsumexp_k log p(x, k), in nats; the paper's section 3.4 detects by p(x).

    The mixture was learned with the network, so there is nothing more to fit.
    """

    name = "likelihood"

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "LikelihoodDetector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "LikelihoodDetector":
        return cls()

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        return -gaussian.log_likelihood(evidence.log_joint)
