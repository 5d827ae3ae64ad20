"""The kernel-density detector (Feinman et al., "Detecting Adversarial Samples from Artifacts", arXiv 1703.00410).

Legend: n images, m reference rows, d features, h the bandwidth.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detectors.base import CleanBatches, Detector, Evidence
from detectors.gathering import CHUNK, CleanRows, draw_per_class, gather_rows
from model import gaussian
from model.errors import CalibrationError

NUM_REFERENCES = 500  # a class
# Bandwidths tried, in deviations of the features within their class: from 1/16 to 2 by steps of sqrt 2.
GRID = tuple(2.0 ** (step / 2) for step in range(-8, 3))


class KernelDensityDetector(Detector):
    """score = -log of the mean of N(x; x_i, h^2 I) over the predicted class's training features x_i, in nats.

    The paper's dense estimate at the last hidden layer, without the logistic regression that needs attack samples.
    Its bandwidth is not tuned on attacks either: it is the one of a grid under which every
    reference row is likeliest by the others of its class.

    reference (m, d), at most 500 rows a class; labels (m,), their classes; bandwidth: h.
    """

    name = "kernel-density"

    def __init__(self, reference: Float[Tensor, "m d"], labels: Int[Tensor, " m"], bandwidth: Float[Tensor, ""]):
        super().__init__()
        self.register_buffer("reference", reference)
        self.register_buffer("labels", labels)
        self.register_buffer("bandwidth", bandwidth)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "KernelDensityDetector":
        rows = draw_per_class(gather_rows(batches), NUM_REFERENCES, generator)
        check_counts(torch.bincount(rows.labels, minlength=rows.num_classes))
        return cls(rows.features, rows.labels, choose_bandwidth(rows))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "KernelDensityDetector":
        return cls(state["reference"], state["labels"], state["bandwidth"])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        pairs = zip(torch.split(evidence.features, CHUNK), torch.split(evidence.class_index, CHUNK), strict=True)
        return -torch.cat([self._log_densities(features, class_index) for features, class_index in pairs])

    def _log_densities(self, features: Float[Tensor, "n d"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A kernel density is a Gaussian mixture with a component at each reference row."""
        reference, labels = cast(Tensor, self.reference), cast(Tensor, self.labels)
        log_variances = 2 * cast(Tensor, self.bandwidth).log().expand(len(reference), 1)
        log_weights = -torch.bincount(labels)[labels].log()
        kernels = gaussian.log_joint(features, reference, log_variances, log_weights)
        return kernels.masked_fill(labels != class_index.unsqueeze(1), -torch.inf).logsumexp(1)


def check_counts(counts: Int[Tensor, " k"]) -> None:
    """Raises CalibrationError for a class without any row, or where none has the two that a bandwidth needs."""
    if bool((counts == 0).any()):
        raise CalibrationError(f"class {int(counts.argmin())} has no clean image to estimate its density from")
    if int(counts.max()) < 2:
        raise CalibrationError("no class has two clean images: a kernel's bandwidth cannot be told from one")


def choose_bandwidth(rows: CleanRows) -> Float[Tensor, ""]:
    """The bandwidth of the grid with the greatest leave-one-out log-likelihood, summed over classes (float64)."""
    found = [rows.features[rows.labels == index].double() for index in range(rows.num_classes)]
    spread = torch.cat([of - of.mean(0) for of in found]).square().mean().sqrt()
    grid = torch.tensor(GRID).to(spread) * spread.clamp_min(torch.finfo(torch.float32).eps)
    likelihoods = torch.stack([leave_one_out(of, grid) for of in found if len(of) > 1]).sum(0)
    return grid[likelihoods.argmax()].float()


def leave_one_out(features: Float[Tensor, "n d"], bandwidths: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """sum_i log mean_{j != i} exp(-|x_i - x_j|^2 / 2 h^2) / h^d, for each bandwidth; in nats up to a constant."""
    squares = torch.cdist(features, features).square().fill_diagonal_(torch.inf)
    sums = torch.stack([torch.logsumexp(squares / (-2 * bandwidth.square()), 1).sum() for bandwidth in bandwidths])
    return sums - features.numel() * bandwidths.log()
