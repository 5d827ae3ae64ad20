"""What detectors with a reference share: clean evidence in memory, rows drawn of it, the nearest of them.

Legend: n, m rows; k neighbours; d values a row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detectors.base import CleanBatches, Evidence
from model.errors import CalibrationError

CHUNK = 1024  # rows judged at once against a reference, so that (n, m) stays small


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanRows:
    """Clean evidence of n images: what every layer saw (n, _), the taps and then the features; true labels (n,)."""

    layers: tuple[Float[Tensor, "n _"], ...]
    labels: Int[Tensor, " n"]
    num_classes: int

    @property
    def features(self) -> Float[Tensor, "n d"]:
        """The last layer."""
        return self.layers[-1]

    def select(self, rows: Int[Tensor, " m"]) -> "CleanRows":
        """Those rows of every layer."""
        return CleanRows(
            layers=tuple(layer[rows] for layer in self.layers),
            labels=self.labels[rows],
            num_classes=self.num_classes,
        )


def layers_of(evidence: Evidence) -> list[Tensor]:
    """What every layer saw, (n, _) each: the taps, then the features."""
    return [*evidence.taps, evidence.features]


def gather_rows(batches: CleanBatches) -> CleanRows:
    """All batches in one. Raises CalibrationError for no row at all, or a value that is not finite."""
    parts, labels, num_classes = [], [], 0
    for evidence, batch_labels in batches:
        parts.append([layer.detach() for layer in layers_of(evidence)])
        labels.append(batch_labels)
        num_classes = evidence.log_joint.shape[1]
    layers = tuple(torch.cat(layer) for layer in zip(*parts, strict=True))
    if not layers or len(layers[-1]) == 0:
        raise CalibrationError("there is no clean image to fit on")
    if not all(bool(layer.isfinite().all()) for layer in layers):
        raise CalibrationError("a clean activation is not finite: the network does not judge clean data")
    return CleanRows(layers=layers, labels=torch.cat(labels), num_classes=num_classes)


def draw(rows: CleanRows, at_most: int, generator: torch.Generator) -> CleanRows:
    """So many of the rows, or all where there are fewer, drawn without replacement."""
    order = torch.randperm(len(rows.labels), generator=generator)
    return rows.select(order[:at_most].to(rows.labels.device))


def draw_per_class(rows: CleanRows, at_most: int, generator: torch.Generator) -> CleanRows:
    """So many rows of each class, or all of a class that has fewer, drawn without replacement; sorted by class."""
    drawn = draw(rows, len(rows.labels), generator)
    found = [torch.nonzero(drawn.labels == index).squeeze(1)[:at_most] for index in range(rows.num_classes)]
    return drawn.select(torch.cat(found))


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], num_neighbours: int
) -> Int[Tensor, "n k"]:
    """Which reference rows are nearest to each query, the nearest first, by Euclidean distance.

    The distances come from matrix products, forty times as fast as differences, which cancel where a distance is
    small against the rows' lengths: hence the centring, and callers compute the distances that they keep anew.
    """
    centre = reference.mean(0)
    centred = reference - centre
    found = [
        torch.cdist(chunk - centre, centred).topk(num_neighbours, dim=1, largest=False).indices
        for chunk in torch.split(queries, CHUNK)
    ]
    return torch.cat(found)
