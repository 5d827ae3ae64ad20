"""Gradients of the L-GM terms that can be differentiated again: for penalties on gradients, and second derivatives.

`lgm_function` has them in closed form, which autograd cannot look into; where a graph of them is asked for
(`create_graph=True`) they are made here by plain operations, which hold several (n, k) matrices.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import gaussian


def gradients(arguments: tuple[Any, ...], grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
    """Of features, means, raw and log-priors, from those of L_cls and L_lkd (n,); arguments: those of `_terms`."""
    wanted = [part is not None and part.requires_grad for part in arguments[:4]]
    sources = [part for part, is_wanted in zip(arguments, wanted, strict=False) if is_wanted]
    found = iter(torch.autograd.grad(_terms(*arguments), sources, (grad_cls, grad_lkd), create_graph=True))
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)


def _terms(
    features: Tensor,
    means: Tensor,
    raw: Tensor | None,
    log_priors: Tensor,
    labels: Tensor,
    floor: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """L_cls and L_lkd (n,); lambda = floor + exp(raw), raw None for unit variances."""
    squares = (features - means[labels]).square()
    if raw is None:
        log_variances, likelihood = None, 0.5 * squares.sum(1)
        distances = likelihood
    else:
        log_variances = gaussian.log_floored(raw, floor)
        own = log_variances[labels]
        distances = 0.5 * (squares * torch.exp(-own)).sum(1)
        likelihood = distances + gaussian.half_log_determinant(own, features.shape[1])
    joint = gaussian.log_joint(features, means, log_variances, log_priors)
    margined = joint.scatter_add(1, labels.unsqueeze(1), -alpha * distances.unsqueeze(1))
    return F.cross_entropy(margined, labels, reduction="none"), likelihood
