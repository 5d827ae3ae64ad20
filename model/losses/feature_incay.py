"""Feature incay: softmax that asks for long features where they are classified rightly."""

from torch import Tensor
from torch.nn import functional as F

from model.losses.base import LinearLoss, above_zero


class FeatureIncayLoss(LinearLoss):
    """Softmax cross entropy and the reciprocal norm of rightly classified features.

    L = CE(f, z) + weight / n sum_(argmax f = z) 1 / (|x|^2 + epsilon)
    Yuan, Yang, Zhang, "Feature Incay for Representation Regularization", 2017, arXiv 1705.10284. weight: the paper's
    lambda, zero or more; 0 is softmax. epsilon bounds the term where a feature is short, and is above zero.
    """

    name = "feature-incay"
    title = "feature incay (Yuan et al. 2017)"

    def __init__(self, num_classes: int, num_features: int, *, weight: float = 1.0, epsilon: float = 1.0):
        super().__init__(num_classes, num_features, lambda_=weight)
        self.epsilon = above_zero("epsilon", epsilon)

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(features)
        right = logits.argmax(1) == labels
        reciprocal = right / (features.square().sum(1) + self.epsilon)
        return F.cross_entropy(logits, labels), reciprocal.mean()
