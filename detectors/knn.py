"""The nearest-neighbour detector (Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML
2022, arXiv 2204.06507).

Legend: n images, m reference rows, d features, k neighbours.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from detectors.base import CleanBatches, Detector, Evidence
from detectors.gathering import draw, gather_rows, nearest

NUM_REFERENCES = 5_000
NUM_NEIGHBOURS = 50  # the paper's for CIFAR-10
CLASS_SHARE = 0.1  # of a class's references: fewer neighbours on small sets, where 50 would lie in other classes


class KNNDetector(Detector):
    """score = distance of x / |x| to the k-th nearest of at most 5,000 training features, so normalised; in [0, 2].

    reference (m, d): training features of length one; num_neighbours: k, 50 where a class has 500
    references on average, otherwise a tenth of what it has.
    """

    name = "knn"

    def __init__(self, reference: Float[Tensor, "m d"], num_neighbours: Int[Tensor, ""]):
        super().__init__()
        self.register_buffer("reference", reference)
        self.register_buffer("num_neighbours", num_neighbours)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "KNNDetector":
        rows = draw(gather_rows(batches), NUM_REFERENCES, generator)
        share = int(CLASS_SHARE * len(rows.labels) / rows.num_classes)
        num_neighbours = min(NUM_NEIGHBOURS, max(1, share))
        return cls(normalize(rows.features), torch.tensor(num_neighbours, device=rows.labels.device))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "KNNDetector":
        return cls(state["reference"], state["num_neighbours"])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        features, reference = normalize(evidence.features), cast(Tensor, self.reference)
        furthest = nearest(features, reference, int(cast(Tensor, self.num_neighbours)))[:, -1]
        distances: Tensor = torch.linalg.vector_norm(features - reference[furthest], dim=1)
        return distances
