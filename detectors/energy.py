"""The energy detector (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence
from model import gaussian


class EnergyDetector(Detector):
    """score = -logsumexp_k of the logits, in nats (equation 4 at temperature 1).

    The logits are the log joint less what classes share of it, -d/2 log 2 pi - <x^2, 1/lambda> / 2. With unit
    variances they are <x, mu_k> - |mu_k|^2 / 2 + log p(k), the linear classifier of the same posterior.
    Where each class has variances of its own, the mean of 1/lambda_k over classes is what they share: exact
    for variances that are equal, and for others only the deviation from that mean stays in the logits.

    Unlike -log p(x), this energy falls with the length of the features. There is nothing to fit.
    """

    name = "energy"

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "EnergyDetector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "EnergyDetector":
        return cls()

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        shared = shared_log_density(evidence.features, evidence.network.mixture.log_variances)
        return shared - gaussian.log_likelihood(evidence.log_joint)


def shared_log_density(
    features: Float[Tensor, "n d"], log_variances: Float[Tensor, "k v"] | None
) -> Float[Tensor, " n"]:
    """-<x^2, mean_k 1/lambda_k> / 2 - d/2 log 2 pi, in nats; None stands for unit variances."""
    normalisation = 0.5 * features.shape[1] * math.log(2 * math.pi)
    if log_variances is None:
        return gaussian.negative_half_squares(features, 1).squeeze(1) - normalisation
    precision = torch.exp(-log_variances).mean(0)
    return gaussian.negative_half_squares(features, len(precision)) @ precision - normalisation
