"""Losses over pairs, triplets and quadruplets of a batch: they compare features and know no classifier.

All take features as they are, not scaled to one length: a length that nothing holds has no density. The
comparisons of a batch are all made, so memory is O(n^2), that of the triplets O(n^3 / k).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from model.losses import library
from model.losses.base import RivalLoss, above_zero, zero
from model.losses.center import centre_steps

EXACT = "donot_use_mm_for_euclid_dist"  # by differences: by products they cancel where |x| is large, batch by batch


class PairLoss(RivalLoss):
    """Says which class's mean is nearest: logits -|x - c_k|^2 / 2, the c_k running means by center loss's rule."""

    RATE = 0.5
    means: Tensor

    def __init__(self, num_classes: int, num_features: int):
        super().__init__(num_classes, num_features)
        self.register_buffer("means", torch.zeros(num_classes, num_features))

    @abstractmethod
    def compare(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss over all comparisons of the batch; zero where there is none."""

    @final
    def _logits(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.means, compute_mode=EXACT).square() / 2

    @final
    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and torch.is_grad_enabled():
            self.means -= self.RATE * centre_steps(self.means, features, labels)
        return self.compare(features, labels), zero(features)


class ContrastiveLoss(PairLoss):
    """Siamese pairs: those of a class are drawn together, others pushed apart up to a margin.

    L = mean over pairs of a class of D^2 / 2 + mean over other pairs of max(0, margin - D)^2 / 2,  D = |x_i - x_j|
    Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, equation 4. The
    means weigh both kinds alike however many there are. margin: above zero.
    """

    name = "contrastive"
    title = "contrastive, Siamese pairs (Hadsell et al. 2006)"

    def __init__(self, num_classes: int, num_features: int, *, margin: float = 4.0):
        super().__init__(num_classes, num_features)
        self.margin = above_zero("margin", margin)

    def compare(self, features: Tensor, labels: Tensor) -> Tensor:
        distances = distances_of(features)
        same = labels.unsqueeze(1) == labels
        pairs = torch.ones_like(same).triu(1)
        together = distances[same & pairs].square().sum() / 2
        apart = F.relu(self.margin - distances[~same & pairs]).square().sum() / 2
        num_same, num_other = (same & pairs).sum().clamp_min(1), (~same & pairs).sum().clamp_min(1)
        return together / num_same + apart / num_other


class TripletLoss(PairLoss):
    """Another image of one's class must be nearer than one of another class, by a margin.

    L = mean over triplets with a loss of max(0, |a - p|^2 - |a - n|^2 + margin)
    Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015,
    equation 3 (there features of length one and margin 0.2). margin: above zero.
    """

    name = "triplet"
    title = "triplet (Schroff et al. 2015)"

    def __init__(self, num_classes: int, num_features: int, *, margin: float = 4.0):
        super().__init__(num_classes, num_features)
        self.margin = above_zero("margin", margin)
        distance = library.distances().LpDistance(normalize_embeddings=False, power=2)
        self.rule = library.losses().TripletMarginLoss(margin=margin, distance=distance)

    def compare(self, features: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.rule(features - features.detach().mean(0), labels)  # its distances are by products
        return loss


class QuadrupletLoss(PairLoss):
    """Triplets, and pairs of a class nearer than pairs of two other classes.

    L = mean max(0, |a - p|^2 - |a - n|^2 + margin) + mean max(0, |a - p|^2 - |n - n'|^2 + second_margin)
    Chen, Chen, Zhang, Huang, "Beyond Triplet Loss: A Deep Quadruplet Network for Person Re-identification", CVPR
    2017, equation 6; a, n, n' of three classes. All triplets and quadruplets of the batch count, the means are over
    those with a loss; sorted distances give the sums, so that memory is O(n^2). margins: above zero, the second
    the smaller one.
    """

    name = "quadruplet"
    title = "quadruplet (Chen et al. 2017)"

    def __init__(self, num_classes: int, num_features: int, *, margin: float = 4.0, second_margin: float = 2.0):
        super().__init__(num_classes, num_features)
        self.margin = above_zero("margin", margin)
        self.second_margin = above_zero("second_margin", second_margin)

    def compare(self, features: Tensor, labels: Tensor) -> Tensor:
        squares = distances_of(features).square()
        same = labels.unsqueeze(1) == labels
        partners = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        triplets = shortfalls(
            (squares + self.margin).masked_fill(~partners, -torch.inf), squares.masked_fill(same, torch.inf)
        )
        quadruplets = [
            shortfalls(
                squares[own][:, own][partners[own][:, own]] + self.second_margin,
                squares[~own][:, ~own][~same[~own][:, ~own]],
            )
            for own in (labels == label for label in torch.unique(labels))
        ]
        return (_mean([triplets]) + _mean(quadruplets)).to(features.dtype)


def shortfalls(bounds: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of max(0, b - v) over every bound b and value v of the same row, and how many of them are above zero.

    bounds (..., p) may hold -inf and values (..., q) inf, which count for nothing. In float64: the sums cancel.
    """
    if bounds.shape[-1] == 0 or values.shape[-1] == 0:
        return bounds.new_zeros((), dtype=torch.float64), bounds.new_zeros((), dtype=torch.long)
    ordered = values.double().sort(-1).values
    bounds = bounds.double()
    below = torch.searchsorted(ordered.detach(), bounds.detach())
    sums = ordered.masked_fill(ordered.isinf(), 0.0).cumsum(-1).gather(-1, (below - 1).clamp_min(0))
    short = below * bounds.masked_fill(below == 0, 0.0) - sums.masked_fill(below == 0, 0.0)
    return short.sum(), below.sum()


def _mean(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    sums, counts = (torch.stack(column) for column in zip(*parts, strict=True))
    return sums.sum() / counts.sum().clamp_min(1)


def distances_of(features: Tensor) -> Tensor:
    """|x_i - x_j| (n, n) from differences, which do not cancel; the gradient at zero is zero."""
    return torch.cdist(features, features, compute_mode=EXACT)
