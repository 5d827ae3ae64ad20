"""The consistency detector: how far the features move under small changes of the image that leave its class clear.

Legend: n images, c channels, h w pixels, d features. An attack's perturbation is fitted to the pixels where it lies;
a clean image means the same one pixel further or a little blurred.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence

SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns
FULL_SHIFT_SIDE = 28  # pixels; smaller images are shifted by the same share of their side, less than a pixel
BLUR_DEVIATION = 0.5  # of the Gaussian, in pixels
FLOOR = 1e-6  # of squared distances and norms: an image that no change alters has a finite score


class ConsistencyDetector(Detector):
    """score = mean over changes T of log(|f(x) - f(Tx)|^2 / 2) - log |f(x)|, f the features.

    The changes: a shift by one pixel in each of four directions, and a slight blur, both with replicated edges; no
    mirror images, since digits are not symmetric. The network is asked again for each of them, five times in all.

    Why features: two posteriors that have both saturated, as strong iterated attacks make them, do not differ
    (CIFAR-10, BIM at eps 8/255: AUROC 0.33 by their divergence, 0.95 so). Why the norm: clean images that the
    network is sure of have features far out, which move further. It divides once and not squared, because
    attacks too lead features far out. The logarithm keeps one change from deciding alone.
    """

    name = "consistency"

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "ConsistencyDetector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "ConsistencyDetector":
        return cls()

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        distances = [_log_distance(evidence, changed) for changed in small_changes(evidence.images)]
        log_norms = 0.5 * (evidence.features.square().sum(1) + FLOOR).log()
        return torch.stack(distances).mean(0) - log_norms


def small_changes(images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c h w"], ...]:
    """The images one pixel (or the share of it) to the right, left, down and up, by linear interpolation; blurred."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    height, width = images.shape[2:]
    share = min(1.0, min(height, width) / FULL_SHIFT_SIDE)
    shifted = (padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in SHIFTS)
    return (*(torch.lerp(images, moved, share) for moved in shifted), _blur(padded))


def _blur(padded: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c h w"]:
    """A 3 x 3 Gaussian whose weights sum to one."""
    side = math.exp(-0.5 / BLUR_DEVIATION**2)
    row = torch.tensor([side, 1.0, side]).to(padded) / (1 + 2 * side)
    kernel = torch.outer(row, row).repeat(padded.shape[1], 1, 1, 1)
    return nn.functional.conv2d(padded, kernel, groups=padded.shape[1])


def _log_distance(evidence: Evidence, changed: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    difference = evidence.features - evidence.network.embed(changed)
    return (0.5 * difference.square().sum(1) + FLOOR).log()
