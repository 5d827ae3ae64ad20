"""Knowledge distillation: a network learns from another one's softened answers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import ConfigurationError
from model.losses.base import LinearLoss, above_zero, at_most_one, zero


class DistillationLoss(LinearLoss):
    """Cross entropy with the labels and with a teacher's softened posterior.

    L = (1 - weight) CE(f, z) + weight T^2 KL(softmax(t / T) || softmax(f / T)), t the teacher's logits
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2; T^2
    keeps the gradient's size whatever the temperature T. weight: the teacher's share, in [0, 1]; 0 is softmax.

        criterion = DistillationLoss(num_classes, num_features, teacher=teacher)
        criterion.see(images)
        criterion(features, labels).total.backward()

    teacher: images (n, c, h, w) -> logits (n, k). It is called without gradient, in whatever mode it is.
    """

    name = "distillation"
    title = "knowledge distillation (Hinton et al. 2015)"

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        teacher: Callable[[Tensor], Tensor],
        temperature: float = 4.0,
        weight: float = 0.9,
    ):
        super().__init__(num_classes, num_features)
        self.temperature = above_zero("temperature", temperature)
        self.weight = at_most_one("weight", weight)
        self._teach = [teacher]  # in a list, so that a module's weights are not taken for the loss's own
        self._told: Tensor | None = None

    @torch.no_grad()
    def see(self, images: Tensor) -> None:
        """Ask the teacher about the images whose features come next."""
        told = self._teach[0](images).float()
        if told.shape != (len(images), self.num_classes):
            raise ConfigurationError(f"the teacher knows {tuple(told.shape)[1:]} classes, not {self.num_classes}")
        self._told = told

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        told, self._told = self._told, None
        if told is None or len(told) != len(features):
            raise ConfigurationError("distillation needs the batch's images: call see(images) before the loss")
        logits = self._logits(features)
        softened = F.kl_div(
            F.log_softmax(logits / self.temperature, 1),
            F.log_softmax(told.to(logits) / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        own = F.cross_entropy(logits, labels)
        return torch.lerp(own, self.temperature**2 * softened, self.weight), zero(features)
