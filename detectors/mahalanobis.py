"""The Mahalanobis detector (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
Adversarial Attacks", NeurIPS 2018, arXiv 1807.03888).

Legend: n images, k classes, m channels of a layer.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence
from detectors.gathering import CleanRows, gather_rows, layers_of

RIDGE = 1e-3  # of the mean variance of a layer's channels: keeps the covariance regular where channels are dead


class TiedGaussians(nn.Module):
    """Class Gaussians over one layer, sharing one full covariance Sigma.

    centre (m,): the mean over all rows; whitening W (m, m) with W^T W = Sigma^-1; means (k, m): the class means,
    centred and whitened. Classes without a row have no mean.
    """

    def __init__(self, centre: Float[Tensor, " m"], whitening: Float[Tensor, "m m"], means: Float[Tensor, "k m"]):
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("whitening", whitening)
        self.register_buffer("means", means)

    @classmethod
    def fit(cls, rows: CleanRows, outputs: Float[Tensor, "n m"]) -> "TiedGaussians":
        """Equation 1 of the paper, with a ridge, in float64."""
        classes, labels = torch.unique(rows.labels, return_inverse=True)
        centre = outputs.double().mean(0)
        centred = outputs.double() - centre
        counts = torch.bincount(labels).unsqueeze(1)
        sums = centred.new_zeros(len(classes), centred.shape[1]).index_add_(0, labels, centred)
        residuals = centred - (sums / counts)[labels]
        whitening = whitening_of(residuals.T @ residuals / len(residuals))
        return cls(centre.float(), whitening.float(), (sums / counts @ whitening.T).float())

    def forward(self, outputs: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """min_k (t - mu_k)^T Sigma^-1 (t - mu_k), the squared distance of outputs t to the nearest class."""
        whitened = (outputs - cast(Tensor, self.centre)) @ cast(Tensor, self.whitening).T
        # The few class means allow differences, which do not cancel as the squares of matrix products do.
        distances = torch.cdist(whitened, cast(Tensor, self.means), compute_mode="donot_use_mm_for_euclid_dist")
        return distances.min(1).values.square()


class MahalanobisDetector(Detector):
    """score = sum over layers of the squared Mahalanobis distance to the layer's nearest class.

    Layers: the taps, then the features. Two parts of the paper are left out, for they would have to see attack
    samples: layers weigh the same, where the paper learns weights by a logistic regression on them; and
    inputs are not moved towards the nearest class first, a step whose length the paper tunes on them
    and which costs one more forward and backward pass a layer.
    """

    name = "mahalanobis"

    def __init__(self, layers: list[TiedGaussians]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "MahalanobisDetector":
        rows = gather_rows(batches)
        return cls([TiedGaussians.fit(rows, outputs) for outputs in rows.layers])

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "MahalanobisDetector":
        count = len({name.split(".")[1] for name in state})
        names = ("centre", "whitening", "means")
        return cls([TiedGaussians(*(state[f"layers.{at}.{name}"] for name in names)) for at in range(count)])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        pairs = zip(self.layers, layers_of(evidence), strict=True)
        return torch.stack([layer(outputs) for layer, outputs in pairs]).sum(0)


def whitening_of(covariance: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """W with W^T W = (Sigma + ridge)^-1, for any covariance, that of a single row or of dead channels too."""
    identity = torch.eye(len(covariance)).to(covariance)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).eps)
    factor = torch.linalg.cholesky(covariance + ridge * identity)
    whitening: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return whitening.contiguous()
