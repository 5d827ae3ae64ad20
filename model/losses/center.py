"""Center loss: softmax, and features drawn to a running centre of their class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.losses.base import LinearLoss, at_most_one


class CenterLoss(LinearLoss):
    """Softmax cross entropy and the squared distance to the centre of one's class, which has its own rule.

    L = CE(f, z) + weight mean_i |x_i - c_z|^2 / 2                                      (equation 5, as batch means)
    delta c_j = sum_i [z_i = j] (c_j - x_i) / (1 + sum_i [z_i = j]),  c_j -= rate delta c_j         (equation 4)
    Wen, Zhang, Li, Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016. weight:
    the paper's lambda, zero or more (0.003 there); 0 is softmax. centre_rate: its alpha, in [0, 1] (0.5 there).
    Centres start at zero and move once a call in training mode, after the loss was taken.
    """

    name = "center"
    title = "center loss (Wen et al. 2016)"
    centres: Tensor

    def __init__(self, num_classes: int, num_features: int, *, weight: float = 0.003, centre_rate: float = 0.5):
        super().__init__(num_classes, num_features, lambda_=weight)
        self.centre_rate = at_most_one("centre_rate", centre_rate)
        self.register_buffer("centres", torch.zeros(num_classes, num_features))

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        distances = (features - self.centres[labels]).square().sum(1) / 2
        if self.training and torch.is_grad_enabled():
            # not in place: the backward pass of a compiled loss reads the old ones again
            self.centres = self.centres - self.centre_rate * centre_steps(self.centres, features, labels)
        return F.cross_entropy(self._logits(features), labels), distances.mean()


@torch.no_grad()
def centre_steps(centres: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """delta c (k, d) of equation 4; zero for a class that the batch lacks.

    Features whose square is not finite are left out: GradScaler skips their step, a centre would keep them for good.
    """
    counted = features.square().sum(1, keepdim=True).isfinite()
    counts = centres.new_zeros(len(centres), 1).index_add_(0, labels, counted.to(centres))
    sums = torch.zeros_like(centres).index_add_(0, labels, features.where(counted, 0.0))
    return (counts * centres - sums) / (1 + counts)
