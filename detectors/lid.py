"""The dimensionality detector (Ma et al., "Characterizing Adversarial Subspaces Using Local Intrinsic
Dimensionality", ICLR 2018).

Legend: n images, m reference rows, c channels of a layer, k neighbours.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence
from detectors.gathering import draw, gather_rows, layers_of, nearest
from model.errors import CalibrationError

NUM_REFERENCES = 1_000
NUM_NEIGHBOURS = 20  # the paper's, of a minibatch of 100
NEIGHBOUR_SHARE = 0.2  # of the reference, where it is smaller than that
FEWEST_REFERENCES = 3  # two neighbours, and one to spare for a row that is itself in the reference
# Of the distance to the furthest neighbour. Below it a row is the image itself: rounding differs between batches.
SAME = 1e-3
LEAST_RATIO = 1e-6  # of two distances, and the least mean logarithm of it: what float32 can tell


class LayerDimensionality(nn.Module):
    """Local intrinsic dimensionality of one layer's outputs against reference rows (m, c) of clean images."""

    def __init__(self, reference: Float[Tensor, "m c"]):
        super().__init__()
        self.register_buffer("reference", reference)

    def forward(self, outputs: Float[Tensor, "n c"], num_neighbours: int) -> Float[Tensor, " n"]:
        """Estimates, positive and finite. A row that is in the reference is not its own neighbour."""
        reference = cast(Tensor, self.reference)
        found = reference[nearest(outputs, reference, num_neighbours + 1)]
        distances = torch.linalg.vector_norm(outputs.unsqueeze(1) - found, dim=2).sort(1).values
        is_reference = distances[:, :1] <= SAME * distances[:, -1:]
        return dimensionality(torch.where(is_reference, distances[:, 1:], distances[:, :-1]))


class LIDDetector(Detector):
    """score = mean over layers of the local intrinsic dimensionality; higher off the manifold of clean images.

    Layers: the taps, then the features. They weigh the same, where the paper learns weights by a logistic regression
    on attack samples; and the reference is one fixed sample of clean training images instead of
    the rest of a minibatch, so that a row's score is its own.

    references: rows (m, c) of the same m <= 1,000 images for each layer; num_neighbours: k.
    """

    name = "lid"

    def __init__(self, layers: list[LayerDimensionality], num_neighbours: Int[Tensor, ""]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.register_buffer("num_neighbours", num_neighbours)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "LIDDetector":
        rows = draw(gather_rows(batches), NUM_REFERENCES, generator)
        count = len(rows.labels)
        if count < FEWEST_REFERENCES:
            raise CalibrationError(f"{count} clean images are too few: neighbours need at least {FEWEST_REFERENCES}")
        num_neighbours = min(NUM_NEIGHBOURS, max(2, int(NEIGHBOUR_SHARE * count)))
        layers = [LayerDimensionality(layer) for layer in rows.layers]
        return cls(layers, torch.tensor(num_neighbours, device=rows.labels.device))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "LIDDetector":
        layers = [LayerDimensionality(state[f"layers.{at}.reference"]) for at in range(len(state) - 1)]
        return cls(layers, state["num_neighbours"])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        num_neighbours = int(cast(Tensor, self.num_neighbours))
        pairs = zip(self.layers, layers_of(evidence), strict=True)
        return torch.stack([layer(outputs, num_neighbours) for layer, outputs in pairs]).mean(0)


def dimensionality(distances: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """-1 / mean_i log(r_i / r_k), the maximum-likelihood estimate (equation 4), of ascending distances r.

    Ratios below 1e-6 count as 1e-6, so coincident neighbours have a small dimension and none at all is needed.
    """
    furthest = distances[:, -1:].clamp_min(torch.finfo(distances.dtype).tiny)
    logarithms = (distances / furthest).clamp_min(LEAST_RATIO).log()
    return 1 / (-logarithms.mean(1)).clamp_min(LEAST_RATIO)
