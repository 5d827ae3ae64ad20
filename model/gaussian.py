"""Pure maths of class Gaussians with unit, isotropic or diagonal covariances.

Legend: n inputs, k classes, d features, v variances a class: 1 (isotropic) or d (diagonal). None in place of
variances stands for unit ones. Source of the model: Wan et al., "Rethinking Feature Distribution for Loss
Functions in Image Classification", CVPR 2018.

A Gaussian is an exponential family: log p(x, k) = <x, w_k> + <s(x), 1/lambda_k> + b_k - d/2 log 2 pi, so all
classes at once are matrix products and no (n, k, d) tensor is ever made. The expansion cancels where |x| is
large against the distance: callers centre both x and mu on one point, which changes no distance, and
`log_joint` also computes in float64.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# A smaller 1 / lambda may have lost digits in float32, and raw itself is the logarithm of lambda.
SMALLEST_INVERSE = 1e-34


def negative_half_squares(features: Float[Tensor, "n d"], num_variances: int) -> Float[Tensor, "n v"]:
    """s(x), what multiplies 1 / lambda: -|x|^2 / 2 for one variance a class, otherwise -x^2 / 2."""
    if num_variances == 1:
        return features.square().sum(1, keepdim=True).mul(-0.5)
    return features.square().mul(-0.5)


def natural_parameters(
    means: Float[Tensor, "k d"], inverse_variances: Float[Tensor, "k v"] | None
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """w_k = mu_k / lambda_k and <mu_k, w_k>, half of which the bias b_k lacks of log p(k) - log|Lambda_k| / 2."""
    if inverse_variances is None:
        return means, means.square().sum(1)
    if inverse_variances.shape[1] == 1:
        return means * inverse_variances, means.square().sum(1) * inverse_variances.squeeze(1)
    weight = means * inverse_variances
    return weight, (means * weight).sum(1)


def half_log_determinant(log_variances: Float[Tensor, "k v"], num_features: int) -> Float[Tensor, " k"]:
    """log|Lambda_k| / 2 of isotropic (v = 1) or diagonal (v = d) covariances."""
    return (0.5 * num_features / log_variances.shape[1]) * log_variances.sum(1)


def log_floored(raw: Float[Tensor, "k v"], floor: float) -> Float[Tensor, "k v"]:
    """log lambda of lambda = floor + exp(raw), differentiable."""
    return torch.logaddexp(raw, raw.new_tensor(math.log(floor)))


def log_floored_(inverse: Float[Tensor, "k v"], raw: Float[Tensor, "k v"], floor: float) -> Float[Tensor, "k v"]:
    """The same, finite for any raw; writes 1 / lambda to `inverse`.

    floor / lambda is the sigmoid of log floor - raw, and a CPU takes sigmoids faster than exponentials.
    No autograd: the loss has its gradient by hand.
    """
    torch.sub(raw, math.log(floor), out=inverse).neg_().sigmoid_().mul_(1 / floor)
    return torch.maximum(inverse.clamp_min(SMALLEST_INVERSE).log_().neg_(), raw)


def exact_dtype(values: Tensor) -> torch.dtype:
    """The widest that their device has."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def returned_dtype(features: Tensor) -> torch.dtype:
    """That of the features, float32 at least."""
    return torch.promote_types(features.dtype, torch.float32)


def log_joint(
    features: Float[Tensor, "n d"],
    means: Float[Tensor, "k d"],
    log_variances: Float[Tensor, "k v"] | None,
    log_priors: Float[Tensor, " k"],
) -> Float[Tensor, "n k"]:
    """log p(x, k) = log p(k) - log|Lambda_k| / 2 - d_k(x) - d/2 log 2 pi, in nats, without any margin.

    Differentiable in every argument. Computed in float64 where the device has it (a head's share of a
    network's cost is small, and a likelihood must not depend on the batch or on TF32), returned in that of
    the features, but never narrower than float32: half precision has whole nats where likelihoods are.
    """
    exact = exact_dtype(features)
    with torch.autocast(features.device.type, enabled=False):
        centre = means.detach().to(exact).mean(0)
        scores = _scores(
            features.to(exact) - centre,
            means.to(exact) - centre,
            None if log_variances is None else log_variances.to(exact),
            log_priors.to(exact),
        )
        return (scores - 0.5 * means.shape[1] * math.log(2 * math.pi)).to(returned_dtype(features))


def _scores(features: Tensor, means: Tensor, log_variances: Tensor | None, log_priors: Tensor) -> Tensor:
    if log_variances is None:
        weight, squared_norms = natural_parameters(means, None)
        scores = torch.addmm(log_priors - 0.5 * squared_norms, features, weight.T)
        return scores + negative_half_squares(features, 1)
    inverse = torch.exp(-log_variances)
    log_weights = log_priors - half_log_determinant(log_variances, means.shape[1])
    weight, squared_norms = natural_parameters(means, inverse)
    scores = torch.addmm(log_weights - 0.5 * squared_norms, features, weight.T)
    return scores + negative_half_squares(features, inverse.shape[1]) @ inverse.T


def log_likelihood(log_joints: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """log p(x) = logsumexp_k log p(x, k), in nats; higher = more likely under the mixture."""
    return torch.logsumexp(log_joints, 1)


def posterior(log_joints: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """p(k | x) = softmax_k log p(x, k); rows sum to one."""
    return torch.softmax(log_joints, 1)
