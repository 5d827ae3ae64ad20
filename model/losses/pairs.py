"""Losses over pairs, triplets and quadruplets of a batch: they compare features and know no classifier.

All take features as they are, not scaled to one length: a length that nothing holds has no density. The
comparisons of a batch are all made, so memory is O(n^2), that of the triplets O(n^3 / k).
"""

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from model.losses import library
from model.losses.base import RivalLoss, above_zero, zero
from model.losses.center import centre_steps


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
    def logits(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.means.to(features)).square() / 2

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
        loss: Tensor = self.rule(features, labels)
        return loss


class QuadrupletLoss(PairLoss):
    """Triplets, and pairs of a class nearer than pairs of two other classes.

    L = mean max(0, |a - p|^2 - |a - n|^2 + margin) + mean max(0, |a - p|^2 - |n - n'|^2 + second_margin)
    Chen, Chen, Zhang, Huang, "Beyond Triplet Loss: A Deep Quadruplet Network for Person Re-identification", CVPR
    2017, equation 6; a, n, n' of three classes. For each pair a, p of a class the nearest n and the nearest pair
    n, n' of the batch are taken, so that memory is O(n^2). margins: above zero, the second the smaller one.
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
        foreign = squares.masked_fill(same, torch.inf)
        anchors, partners = torch.nonzero(same.tril(-1) | same.triu(1), as_tuple=True)
        together = squares[anchors, partners]
        first = F.relu(together - foreign.amin(1)[anchors] + self.margin)
        second = F.relu(together - nearest_other_pairs(foreign, labels)[anchors] + self.second_margin)
        return (first.sum() + second.sum()) / max(1, len(anchors))


def nearest_other_pairs(foreign: Tensor, labels: Tensor) -> Tensor:
    """For each input (n,) the least squared distance between two inputs of two classes, neither of them its own.

    foreign (n, n): squared distances, infinite within a class. Only the two classes of the nearest pair of all have
    another answer than its distance. Infinite where the batch has no such pair.
    """
    nearest = foreign.amin().expand(len(labels))
    pair = labels[torch.stack(torch.unravel_index(foreign.detach().argmin(), foreign.shape))]
    for label in pair:
        own = labels == label
        without = foreign.masked_fill(own | own.unsqueeze(1), torch.inf).amin()
        nearest = torch.where(own, without, nearest)
    return nearest


def distances_of(features: Tensor) -> Tensor:
    """|x_i - x_j| (n, n) from differences, which do not cancel; the gradient at zero is zero."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
