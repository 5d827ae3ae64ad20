"""A block of classes of the L-GM loss: its scores and their gradients as matrix products.

Legend: n inputs, b classes, d features, v variances a class (1 or d), R (n, b) the scores' gradients. Scores are

    <x, w> - <x^2, 1 / lambda> / 2 + bias,  w = mu / lambda

and so no (n, b, d) tensor is ever made. `lgm_function` has the whole matrix at once, `lgm_blocks` a block of it.

Up to some thousand classes the small operations weigh as much as the products, which push their code out of
the cache. So they are few, and written in place or to `out`, which autocast leaves in float32.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from model import gaussian


class Inputs(NamedTuple):
    """x - c (n, d), and of learned variances its squares (n, v); or what either is to be multiplied by."""

    centred: Tensor
    squares: Tensor | None


class Classes(NamedTuple):
    """w (k, d) of centred means; of learned variances 1 / lambda, mu^2 / lambda (k, v) and log|Lambda| / 2 (k, 1)."""

    weight: Tensor
    inverse: Tensor | None
    norms: Tensor | None
    half_log_determinants: Tensor | None


class ClassGradients(NamedTuple):
    """Of means (k, d) and log-variances (k, v), and the sums over the batch of R (k, 1)."""

    means: Tensor
    log_variances: Tensor | None
    sums: Tensor


def _summed(values: Tensor, num_columns: int) -> Tensor:
    """(m, 1) sums of (m, d), or all of it where every column is wanted on its own."""
    return values if values.shape[1] == num_columns else values.sum(1, keepdim=True)


def products(left: Tensor, right: Tensor, num_columns: int) -> Tensor:
    """left * right (m, d), or its sums by row (m, 1)."""
    if left.shape[1] == num_columns:
        return left * right
    if left is right:
        norms: Tensor = torch.linalg.vector_norm(left, dim=1, keepdim=True)
        return norms.square_()  # in half of vecdot's time
    sums = left.new_empty(left.shape[0])
    torch.linalg.vecdot(left, right, out=sums)
    return sums.unsqueeze(1)


def doubled_distances(difference: Tensor, own_inverse: Tensor | None) -> Tensor:
    """Twice d_z (n, 1), from differences, so exact; overwrites 1 / lambda_z."""
    if own_inverse is None:
        return products(difference, difference, 1)
    if own_inverse.shape[1] == 1:
        return products(difference, difference, 1).mul_(own_inverse)
    return products(difference, own_inverse.mul_(difference), 1)


def scores_(
    out: Tensor, inputs: Inputs, classes: Classes, raw: Tensor | None, log_priors: Tensor, floor: float
) -> None:
    """Write the scores (n, b) of a block, and what they are made of over its centred means in `classes.weight`."""
    centred, squares = inputs
    weight, inverse, norms, half_log_determinants = classes
    if squares is None or raw is None or inverse is None or norms is None or half_log_determinants is None:
        bias = torch.add(log_priors, products(weight, weight, 1).squeeze(1), alpha=-0.5)
        _in_every_row(bias, out).addmm_(centred, weight.T)
    else:
        bias = log_priors - _scale_(weight, inverse, norms, half_log_determinants, raw, floor).squeeze(1)
        _quadratic_scores(centred, squares, weight, inverse, bias, out)


def _scale_(
    weight: Tensor, inverse: Tensor, norms: Tensor, half_log_determinants: Tensor, raw: Tensor, floor: float
) -> Tensor:
    """Divide the means in `weight` by lambda and fill in the rest; returns log|Lambda| / 2 + <mu, w> / 2 (b, 1)."""
    log_determinants = _summed(gaussian.log_floored_(inverse, raw, floor), 1)
    torch.mul(log_determinants, _share(weight, inverse), out=half_log_determinants)
    torch.mul(products(weight, weight, raw.shape[1]), inverse, out=norms)
    weight.mul_(inverse)
    return torch.add(half_log_determinants, _summed(norms, 1), alpha=0.5)


def _share(features: Tensor, variances: Tensor) -> float:
    """d log|Lambda| / dlog lambda / 2: d/2 of an isotropic and 1/2 of a diagonal variance."""
    return 0.5 * features.shape[1] / variances.shape[1]


def _quadratic_scores(
    centred: Tensor, squares: Tensor, weight: Tensor, inverse: Tensor, bias: Tensor, out: Tensor
) -> None:
    """<x, w> - <x^2, 1 / lambda> / 2 + b; the rank-one middle of the isotropic form needs no product."""
    if inverse.shape[1] == 1:
        torch.addcmul(bias, squares, inverse.T, value=-0.5, out=out).addmm_(centred, weight.T)
    else:
        _in_every_row(bias, out).addmm_(squares, inverse.T, alpha=-0.5).addmm_(centred, weight.T)


def _in_every_row(bias: Tensor, out: Tensor) -> Tensor:
    """Write the bias (k,) over every row of (n, k): addmm would copy it there in several times the time."""
    return out.copy_(bias)


def gradients_(
    grads: ClassGradients,
    sums: Inputs,
    residuals: Tensor,
    inputs: Inputs,
    classes: Classes,
    slack: Tensor,
    *,
    kept: int,
) -> None:
    """From R (n, b) of a block: write its classes' gradients; sums = kept sums + (R w, R / lambda), kept 0 or 1."""
    weight, inverse, norms, _ = classes
    centred, squares = inputs
    transposed = residuals.T
    torch.mm(transposed, centred, out=grads.means)
    sums.centred.addmm_(residuals, weight, beta=kept)
    torch.sum(residuals, 0, out=grads.sums.squeeze(1))
    if squares is not None and sums.squares is not None and inverse is not None and norms is not None:
        sums.squares.addmm_(residuals, inverse, beta=kept)
        grad_log = cast(Tensor, grads.log_variances)
        torch.mm(transposed, squares, out=grad_log)
        passed = products(grads.means, weight, inverse.shape[1]).addcmul_(grads.sums, norms, value=-0.5)
        _log_variance_gradient_(grad_log, passed, grads.sums - slack, inverse, _share(weight, inverse))
        grads.means.mul_(inverse)
    grads.means.addcmul_(grads.sums, weight, value=-1)  # dL/dmu = dL/dw / lambda - dL/db w


def _log_variance_gradient_(
    grad_inverse: Tensor, passed: Tensor, grad_bias: Tensor, inverse: Tensor, share: float
) -> None:
    """dL/dlog lambda = -[passed + dL/d(1/lambda) / lambda + share dL/db] in place.

    grad_inverse: -2 dL/d(1/lambda); passed: what w and b, which holds -<mu, w> / 2, pass on; share: `_share`.
    """
    torch.sub(grad_bias * -share, passed, out=passed)
    torch.addcmul(passed, grad_inverse, inverse, value=0.5, out=grad_inverse)
