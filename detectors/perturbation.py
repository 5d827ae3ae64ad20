"""The gradient's steps away from a class: FGSM and BIM, in a few lines, for whoever shows what an attack does.

What measures attacks is detectors.evaluation; its attacks come from a library that no server loads.

Legend: n images, c channels, h w pixels, k classes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Logits = Callable[[Tensor], Tensor]


def fgsm(
    logits: Logits, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], *, eps: float
) -> Float[Tensor, "n c h w"]:
    """One step of eps in every pixel: x + eps sign(grad loss), in [0, 1] (Goodfellow et al. 2015, section 4).

    logits: images -> (n, k), a log joint too. The loss is the cross entropy of labels; eps in units of [0, 1].
    """
    return (images + eps * _ascent(logits, images, labels)).clamp(0, 1)


def bim(
    logits: Logits,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    eps: float,
    steps: int,
    step_size: float,
) -> Float[Tensor, "n c h w"]:
    """FGSM in small steps, never further than eps from where it began (Kurakin et al. 2017, section 2.2)."""
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    found = images
    for _ in range(steps):
        found = torch.clamp(found + step_size * _ascent(logits, found, labels), low, high)
    return found


def _ascent(logits: Logits, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Sign of the loss's gradient in each pixel."""
    with torch.enable_grad():
        given = images.detach().requires_grad_()
        loss = functional.cross_entropy(logits(given), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
    return gradient.sign()
