"""Losses whose logits are scaled cosines between features and class weights: only directions count."""

import math
from typing import final

from torch import Tensor
from torch.nn import functional as F

from model.errors import ConfigurationError
from model.losses import library
from model.losses.base import RivalLoss, above_zero, zero
from model.losses.weights import least_scale


class CosineLoss(RivalLoss):
    """L = -log softmax_z (scale cos theta), theta_k the angle between x and w_k."""

    def __init__(self, num_classes: int, num_features: int, *, scale: float):
        super().__init__(num_classes, num_features)
        self.scale = above_zero("scale", scale)
        self.rule = library.losses().NormalizedSoftmaxLoss(
            num_classes, num_features, temperature=1 / scale, distance=library.distances().CosineSimilarity()
        )

    @final
    def _logits(self, features: Tensor) -> Tensor:
        scores: Tensor = self.rule.get_logits(features)
        return scores

    @final
    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(self._logits(features), labels), zero(features)


class NormFaceLoss(CosineLoss):
    """Softmax of scaled cosines; CosFace with margin 0.

    Wang, Xiang, Cheng, Yuille, "NormFace: L2 Hypersphere Embedding for Face Verification", ACM MM 2017,
    arXiv 1704.06369. scale: the paper's s = l^2, fixed; the loss is at least ln(1 + (k - 1) e^(-s k / (k - 1)))
    (proposition 2). By default the scale at which a class's centre can have posterior 0.999.
    """

    name = "normface"
    title = "NormFace (Wang et al. 2017)"

    def __init__(self, num_classes: int, num_features: int, *, scale: float | None = None):
        super().__init__(num_classes, num_features, scale=least_scale(num_classes, 0.999) if scale is None else scale)


class CosineNormalisationLoss(CosineLoss):
    """Softmax of bare cosines: cosine normalisation in the last layer alone; NormFace with scale 1.

    Luo, Zhan, Wang, Yang, "Cosine Normalization: Using Cosine Similarity Instead of Dot Product in Neural Networks",
    2017, arXiv 1702.05870. Its logits lie in [-1, 1], so that it is never sure.
    """

    name = "cosine-normalisation"
    title = "cosine normalisation (Luo et al. 2017)"

    def __init__(self, num_classes: int, num_features: int):
        super().__init__(num_classes, num_features, scale=1.0)


class COCOLoss(CosineLoss):
    """Congenerous cosine: softmax of cosines to learned class centroids at the scale that bounds the loss.

    Liu, Li, Wang, "Rethinking Feature Discrimination and Polymerization for Large-scale Recognition", 2017,
    arXiv 1710.00870. scale: the paper's alpha; by default ln((k - 1) / (e^epsilon - 1)) / 2, the least at which the
    loss ln(1 + (k - 1) e^(-2 alpha)) of opposite centroids is below epsilon. epsilon: above zero.
    """

    name = "coco"
    title = "COCO, congenerous cosine (Liu et al. 2017)"

    def __init__(self, num_classes: int, num_features: int, *, scale: float | None = None, epsilon: float = 1e-4):
        super().__init__(
            num_classes, num_features, scale=coco_scale(num_classes, epsilon) if scale is None else scale
        )


def coco_scale(num_classes: int, epsilon: float) -> float:
    """ln((k - 1) / (e^epsilon - 1)) / 2."""
    if num_classes < 2:
        raise ConfigurationError(f"coco's scale needs at least 2 classes, got {num_classes}")
    if above_zero("epsilon", epsilon) >= math.log(num_classes):
        raise ConfigurationError(f"epsilon must be below ln {num_classes}, the loss of chance, got {epsilon}")
    return math.log((num_classes - 1) / math.expm1(epsilon)) / 2
