"""Softmax cross entropy, plain and with smoothed labels."""

from torch import Tensor
from torch.nn import functional as F

from model.losses.base import LinearLoss, at_most_one, zero


class SoftmaxLoss(LinearLoss):
    """Softmax cross entropy of a linear layer: L = -log softmax_z f."""

    name = "softmax"
    title = "softmax cross entropy"

    def __init__(self, num_classes: int, num_features: int):
        super().__init__(num_classes, num_features)

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(self._logits(features), labels), zero(features)


class LabelSmoothingLoss(LinearLoss):
    """Softmax cross entropy against smoothed labels.

    L = -sum_k q_k log softmax_k f,  q_k = (1 - smoothing) [k = z] + smoothing / k
    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7. smoothing: share of the label's mass that is spread over all classes, in [0, 1]; 0 is softmax.
    """

    name = "label-smoothing"
    title = "softmax with label smoothing (Szegedy et al. 2016)"

    def __init__(self, num_classes: int, num_features: int, *, smoothing: float = 0.1):
        super().__init__(num_classes, num_features)
        self.smoothing = at_most_one("smoothing", smoothing)

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(features)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing), zero(features)
