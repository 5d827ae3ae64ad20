"""Softmax whose true class's score is lowered by noise that fades as the feature turns towards its class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.losses.base import RivalLoss, at_least_zero, zero
from model.losses.weights import class_weights


class NoisySoftmaxLoss(RivalLoss):
    """Softmax with annealed noise in the true class's score.

    f_z = |w_z| |x| cos theta_z - noise |w_z| |x| (1 - cos theta_z) |xi|,  xi ~ N(0, 1), in training only; no bias
    Chen, Deng, Du, "Noisy Softmax: Improving the Generalization Ability of DCNN via Postponing the Early Softmax
    Saturation", CVPR 2017, arXiv 1708.03769. noise: the paper's alpha, zero or more; 0 is softmax without bias. The
    noise is drawn from `generator`, on the CPU, or from torch's global one, as a dropout layer's is.
    """

    name = "noisy-softmax"
    title = "noisy softmax (Chen et al. 2017)"

    def __init__(self, num_classes: int, num_features: int, *, noise: float = 0.3):
        super().__init__(num_classes, num_features)
        self.noise = at_least_zero("noise", noise)
        self.weight = class_weights(num_classes, num_features)
        self.generator: torch.Generator | None = None

    def _logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(features)
        if self.training:
            index = labels.unsqueeze(1)
            lengths = features.norm(dim=1, keepdim=True) * self.weight.norm(dim=1)[index]
            shortfall = lengths - logits.gather(1, index)  # |w| |x| (1 - cos theta)
            strength = self._drawn(features).abs()
            logits = logits.scatter_add(1, index, -self.noise * strength * shortfall)
        return F.cross_entropy(logits, labels), zero(features)

    def _drawn(self, features: Tensor) -> Tensor:
        if self.generator is None:
            return torch.randn(len(features), 1, dtype=features.dtype, device=features.device)
        return torch.randn(len(features), 1, dtype=features.dtype, generator=self.generator).to(features.device)
