"""Losses with a margin on the angle between a feature and its class's weights; the margins are the library's."""

import math
import warnings
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import ConfigurationError
from model.losses import library
from model.losses.base import RivalLoss, above_zero, at_least_zero, zero
from model.losses.weights import class_weights, least_scale

# An angle of zero or pi has no gradient: acos has an infinite one there.
LARGEST_COSINE = 1 - 1e-6
LARGEST_MULTIPLE = 20  # beyond it the sum of powers that cos(m theta) is loses its digits in float32


class AngularMarginLoss(RivalLoss):
    """L = -log softmax_z of scaled cosines, that of the true class made smaller.

    rule: the library's loss, which says by how much and what the scale is. annealing, a number A: the true class's
    cosine is (A_t cos theta + margined) / (A_t + 1), A_t = max(A, 1000 / (1 + decay step)): the share of the margin
    grows from a thousandth to 1 / (A + 1), to a half after 1000 / decay steps. Without annealing (None) the margin
    is there from the first step.
    """

    FIRST = 1000.0

    def __init__(
        self, num_classes: int, num_features: int, *, rule: Any, annealing: float | None = None, decay: float = 0.0
    ):
        super().__init__(num_classes, num_features)
        self.rule = rule
        self.rule.W.data = class_weights(num_classes, num_features).data.T.contiguous()
        self.annealing = None if annealing is None else at_least_zero("annealing", annealing)
        self.decay = at_least_zero("decay", decay)

    @final
    def _logits(self, features: Tensor) -> Tensor:
        scores: Tensor = self.rule.scale_logits(self.rule.get_cosine(features), features)
        return scores

    @final
    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.rule.cast_types(features.dtype, features.device)
        index = labels.unsqueeze(1)
        cosines = self.rule.get_cosine(features)
        own = cosines.gather(1, index).squeeze(1).clamp(-LARGEST_COSINE, LARGEST_COSINE)
        margined = torch.lerp(own, self.rule.modify_cosine_of_target_classes(own), self.margin_share)
        logits = self.rule.scale_logits(cosines.scatter(1, index, margined.unsqueeze(1)), features)
        return F.cross_entropy(logits, labels), zero(features)

    @property
    def margin_share(self) -> float:
        """1 / (1 + A_t): how much of the margin is there at this step."""
        if self.annealing is None:
            return 1.0
        return 1 / (1 + max(self.annealing, self.FIRST / (1 + self.decay * self.step)))


class LSoftmaxLoss(AngularMarginLoss):
    """Large-margin softmax: the angle to the true class counts m times.

    f_z = |w_z| |x| psi(theta_z), f_k = |w_k| |x| cos theta_k;  psi(theta) = (-1)^j cos(m theta) - 2 j for theta in
    [j pi / m, (j + 1) pi / m], which falls from 1 to 1 - 2 m                                    (equations 4 to 6)
    Liu, Wen, Yu, Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016, arXiv 1612.02295.
    margin: the paper's m, a whole number from 1 to 20; 1 is softmax without bias. annealing, decay: see
    AngularMarginLoss; the margin comes in over training as in the paper's section 4.4, here wholly in the end. Too
    much of it at once leaves the network at chance; decay is what SphereFace's authors train with.
    """

    name = "l-softmax"
    title = "large-margin softmax (Liu et al. 2016)"

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        margin: float | int = 2.0,
        annealing: float = 0.0,
        decay: float = 0.12,
    ):
        rule = _multiple_angle("LargeMarginSoftmaxLoss", num_classes, num_features, margin)
        super().__init__(num_classes, num_features, rule=rule, annealing=annealing, decay=decay)


class ASoftmaxLoss(AngularMarginLoss):
    """Angular softmax (SphereFace): L-Softmax with weights of length one.

    f_z = |x| psi(theta_z), f_k = |x| cos theta_k, psi as of LSoftmaxLoss                        (equation 7)
    Liu, Wen, Yu, Li, Raj, Song, "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017,
    arXiv 1704.08063. margin: m, a whole number from 1 to 20 (4 there). annealing, decay: see AngularMarginLoss;
    5 and 0.12 as in the authors' training.
    """

    name = "a-softmax"
    title = "A-Softmax, SphereFace (Liu et al. 2017)"

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        margin: float | int = 4.0,
        annealing: float = 5.0,
        decay: float = 0.12,
    ):
        rule = _multiple_angle("SphereFaceLoss", num_classes, num_features, margin)
        super().__init__(num_classes, num_features, rule=rule, annealing=annealing, decay=decay)


class CosFaceLoss(AngularMarginLoss):
    """Large-margin cosine loss (LMCL), which is additive-margin softmax: the true class's cosine less a margin.

    f_z = scale (cos theta_z - margin), f_k = scale cos theta_k                                  (equation 4)
    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, arXiv 1801.09414; Wang,
    Cheng, Liu, Liu, "Additive Margin Softmax for Face Verification", 2018, arXiv 1801.05599. scale: s, by default its
    lower bound (k - 1) / k ln((k - 1) P / (1 - P)) at P = 0.999 (equation 6). margin: m, zero or more; more than
    k / (k - 1), or in the plane 1 - cos(2 pi / k), cannot be kept by all classes (equation 7). margin 0 is NormFace.
    """

    name = "cosface"
    title = "CosFace, LMCL = AM-Softmax (Wang et al. 2018)"

    def __init__(self, num_classes: int, num_features: int, *, margin: float = 0.35, scale: float | None = None):
        chosen = least_scale(num_classes, 0.999) if scale is None else above_zero("scale", scale)
        rule = library.losses().CosFaceLoss(
            num_classes, num_features, margin=at_least_zero("margin", margin), scale=chosen
        )
        super().__init__(num_classes, num_features, rule=rule)
        self.scale = chosen


class ArcFaceLoss(AngularMarginLoss):
    """Additive angular margin: the angle to the true class grows by a margin.

    f_z = scale cos(theta_z + margin), f_k = scale cos theta_k                                   (equation 3)
    Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    arXiv 1801.07698. margin: m in radians, in [0, pi); 0 is NormFace. Beyond theta = pi - m the library goes on
    falling with cos theta - m sin m. scale: s; by default CosFace's lower bound, as for the other cosine losses.
    """

    name = "arcface"
    title = "ArcFace (Deng et al. 2019)"

    def __init__(self, num_classes: int, num_features: int, *, margin: float = 0.5, scale: float | None = None):
        if not 0 <= margin < math.pi:
            raise ConfigurationError(f"margin must lie in [0, pi) radians, got {margin}")
        chosen = least_scale(num_classes, 0.999) if scale is None else above_zero("scale", scale)
        rule = library.losses().ArcFaceLoss(num_classes, num_features, margin=math.degrees(margin), scale=chosen)
        super().__init__(num_classes, num_features, rule=rule)
        self.scale = chosen


def _multiple_angle(kind: str, num_classes: int, num_features: int, margin: float | int) -> Any:
    if not 1 <= margin <= LARGEST_MULTIPLE or margin != int(margin):
        raise ConfigurationError(f"margin must be a whole number from 1 to {LARGEST_MULTIPLE}, got {margin}")
    with warnings.catch_warnings():  # it asks SciPy for binomials of tensors, of which NumPy 2 warns
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(library.losses(), kind)(num_classes, num_features, margin=int(margin))
