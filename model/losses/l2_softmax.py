"""L2-constrained softmax: features of one length, weights of any."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ConfigurationError
from model.losses.base import RivalLoss, above_zero, zero


class L2SoftmaxLoss(RivalLoss):
    """Softmax cross entropy of features that are scaled to one length first.

    L = -log softmax_z (W scale x / |x| + b)
    Ranjan, Castillo, Chellappa, "L2-constrained Softmax Loss for Discriminative Face Verification", 2017,
    arXiv 1703.09507. scale: the length, the paper's alpha; by default its lower bound ln(P (k - 2) / (1 - P)) at
    P = 0.99 (section 3.3), and 1 where there are too few classes for it.
    """

    name = "l2-softmax"
    title = "L2-constrained softmax (Ranjan et al. 2017)"
    PROBABILITY = 0.99

    def __init__(self, num_classes: int, num_features: int, *, scale: float | None = None):
        super().__init__(num_classes, num_features)
        self.scale = above_zero("scale", l2_scale(num_classes, self.PROBABILITY) if scale is None else scale)
        self.classifier = nn.Linear(num_features, num_classes)

    def _logits(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.scale * F.normalize(features))
        return scores

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(self._logits(features), labels), zero(features)


def l2_scale(num_classes: int, probability: float) -> float:
    """max(1, ln(P (k - 2) / (1 - P)))."""
    if not 0 < probability < 1:
        raise ConfigurationError(f"probability must lie in (0, 1), got {probability}")
    odds = probability / (1 - probability) * max(num_classes - 2, 0)
    return max(1.0, math.log(odds)) if odds > 0 else 1.0
