"""Both L-GM terms as one autograd function: O(n k) memory, matrix products, gradients in closed form.

Legend: n inputs, k classes, d features, v variances a class (1 or d), z the true class of an input. With the
margined posterior p, r = p - [k = z], g and h the incoming gradients of L_cls and L_lkd, w = mu / lambda:

    dL/dx_i          = g_i sum_k r_ik (mu_k - x_i) / lambda_k + t_i (x_i - mu_z) / lambda_z
    dL/dmu_k         = sum_i g_i r_ik (x_i - mu_k) / lambda_k - sum_(z = k) t_i (x_i - mu_z) / lambda_z
    dL/dlog lambda_k = sum_i g_i r_ik [(x_i - mu_k)^2 / lambda_k - 1] / 2
                       + sum_(z = k) [h_i - t_i (x_i - mu_z)^2 / lambda_z] / 2
    t_i = h_i - alpha g_i r_iz: how hard the margin and the likelihood term pull x_i and mu_z together

r is the only (n, k) matrix; forward makes it in place of the scores. A form that never holds it, or one
sharded by class, replaces `_cross_entropy_` and makes r block by block from scores and normaliser.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import gaussian

# Classes handled at a time: a block's parameters and gradients stay in the cache of a core.
CLASS_BLOCK = 1024


class Rows(NamedTuple):
    """Centred features (n, d) and their negative half squares (n, v), None for unit variances."""

    centred: Tensor
    squares: Tensor | None


class Block(NamedTuple):
    """Some classes, centred: which, w (b, d), <mu, w> (b,), 1 / lambda (b, v), and mu (b, d) of the diagonal form."""

    range: slice
    weight: Tensor
    squared_norms: Tensor
    inverse: Tensor | None
    means: Tensor | None


class TrueClass(NamedTuple):
    """x - mu_z (n, d), (x - mu_z) / lambda_z (n, d), 1 / lambda_z (n, v): from differences, so exact."""

    difference: Tensor
    scaled: Tensor
    inverse: Tensor | None


class LGMTerms(torch.autograd.Function):
    """(L_cls, L_lkd) of each input; lambda = floor + exp(raw), raw None for unit variances."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        means: Tensor,
        raw: Tensor | None,
        log_priors: Tensor,
        labels: Tensor,
        floor: float,
        alpha: float,
    ) -> tuple[Tensor, Tensor]:
        centre = means.mean(0)
        rows = _rows(features - centre, raw)
        scores, blocks, half_log_determinants = _scores(rows, means, centre, raw, log_priors, floor)
        true = _true_class(features, means, raw, labels, floor)
        distances = 0.5 * (true.difference * true.scaled).sum(1)
        classification, residuals = _cross_entropy_(scores, labels.unsqueeze(1), alpha * distances)
        saved = [tensor for block in blocks for tensor in block[1:]]
        ctx.save_for_backward(labels, residuals, *rows, *true, *saved)
        ctx.floor, ctx.alpha = floor, alpha
        if half_log_determinants is None:
            return classification, distances
        return classification, distances + half_log_determinants.index_select(0, labels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
        labels, residuals, centred, squares, difference, scaled, inverse, *saved = ctx.saved_tensors
        ranges = _class_ranges(residuals.shape[1])
        blocks = [Block(chosen, *saved[4 * place : 4 * place + 4]) for place, chosen in enumerate(ranges)]
        gradients = _all_classes(Rows(centred, squares), blocks, residuals, grad_cls, ctx.floor)
        true_residuals = residuals.gather(1, labels.unsqueeze(1)).squeeze(1)
        tension = torch.addcmul(grad_lkd, grad_cls, true_residuals, value=-ctx.alpha)
        true = TrueClass(difference, scaled, inverse)
        _add_true_class_(gradients, true, labels, tension, grad_lkd, ctx.floor)
        return *gradients, None, None, None


def _rows(centred: Tensor, raw: Tensor | None) -> Rows:
    if raw is None:
        return Rows(centred, None)
    return Rows(centred, gaussian.negative_half_squares(centred, raw.shape[1]))


def _true_class(features: Tensor, means: Tensor, raw: Tensor | None, labels: Tensor, floor: float) -> TrueClass:
    difference = features - means.index_select(0, labels)
    if raw is None:
        return TrueClass(difference, difference, None)
    inverse = gaussian.floored(raw.index_select(0, labels), floor).reciprocal_()
    return TrueClass(difference, difference * inverse, inverse)


def _class_ranges(num_classes: int) -> list[slice]:
    starts = range(0, num_classes, CLASS_BLOCK)
    return [slice(start, min(start + CLASS_BLOCK, num_classes)) for start in starts]


def _scores(
    rows: Rows, means: Tensor, centre: Tensor, raw: Tensor | None, log_priors: Tensor, floor: float
) -> tuple[Tensor, list[Block], Tensor | None]:
    """Scores (n, k) without the margin, but for a constant of the row; the blocks; log|Lambda| / 2 (k,)."""
    scores = rows.centred.new_empty(len(rows.centred), len(means))
    half_log_determinants = None if raw is None else torch.empty_like(log_priors)
    blocks = []
    for chosen in _class_ranges(len(means)):
        inverse, log_weights = None, log_priors[chosen]
        if raw is not None and half_log_determinants is not None:
            variances = gaussian.floored(raw[chosen], floor)
            inverse = variances.reciprocal()
            log_variances = gaussian.log_floored_(variances, raw[chosen])
            half_log_determinants[chosen] = gaussian.half_log_determinant(log_variances, means.shape[1])
            log_weights = log_weights - half_log_determinants[chosen]
        centred = means[chosen] - centre
        weight, squared_norms = gaussian.natural_parameters(centred, inverse)
        bias = torch.add(log_weights, squared_norms, alpha=-0.5)
        _block_scores(rows, weight, inverse, bias, scores[:, chosen])
        diagonal = inverse is not None and inverse.shape[1] > 1
        blocks.append(Block(chosen, weight, squared_norms, inverse, centred if diagonal else None))
    return scores, blocks, half_log_determinants


def _block_scores(rows: Rows, weight: Tensor, inverse: Tensor | None, bias: Tensor, scores: Tensor) -> None:
    """<x, w> + <s(x), 1 / lambda> + b into `scores`; the rank-one middle of the isotropic form needs no product."""
    if rows.squares is None or inverse is None:
        torch.addmm(bias, rows.centred, weight.T, out=scores)
    elif inverse.shape[1] == 1:
        torch.mul(rows.squares, inverse.T, out=scores).add_(bias).addmm_(rows.centred, weight.T)
    else:
        torch.addmm(bias, rows.centred, weight.T, out=scores).addmm_(rows.squares, inverse.T)


def _cross_entropy_(scores: Tensor, index: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    """L_cls (n,), and the residuals p - [k = z] written over the scores.

    One exponential an entry serves both: with the largest posterior 1 / sum_k exp(score_k - top),
    the normaliser is top - log of it.
    """
    scores.scatter_add_(1, index, -margins.unsqueeze(1))
    true_scores, top = scores.gather(1, index), scores.amax(1, keepdim=True)
    residuals = torch.softmax(scores, 1, out=scores)
    classification = top - true_scores - residuals.amax(1, keepdim=True).log_()
    residuals.scatter_add_(1, index, torch.full_like(top, -1.0))
    return classification.squeeze(1), residuals


Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor]


class Quadratic(NamedTuple):
    """What the backward pass of learned variances needs besides: g s(x) (n, v), and where to put gradients."""

    weighted: Tensor
    grad_squares: Tensor
    grad_raw: Tensor


def _all_classes(rows: Rows, blocks: list[Block], residuals: Tensor, grad_cls: Tensor, floor: float) -> Gradients:
    """Gradients of features, means, raw log-variances and log-priors, but for the true class's pull t."""
    weights, num_classes = grad_cls.unsqueeze(1), residuals.shape[1]
    weighted = rows.centred * weights
    quadratic = None if rows.squares is None else _quadratic(rows.squares, weights, num_classes)
    grad_features = torch.zeros_like(weighted)
    grad_means = weighted.new_empty(num_classes, weighted.shape[1])
    grad_log_priors = grad_cls.new_empty(num_classes)
    share = 0.0 if rows.squares is None else 0.5 * weighted.shape[1] / rows.squares.shape[1]
    for block in blocks:
        part = residuals[:, block.range]
        grad_bias = torch.mv(part.T, grad_cls, out=grad_log_priors[block.range]).unsqueeze(1)
        grad_weight = torch.mm(part.T, weighted, out=grad_means[block.range])
        grad_features.addmm_(part, block.weight)
        if quadratic is not None and block.inverse is not None:
            quadratic.grad_squares.addmm_(part, block.inverse)
            grad_inverse = torch.mm(part.T, quadratic.weighted, out=quadratic.grad_raw[block.range])
            weight_share = _weight_share(grad_weight, grad_bias, block)
            _raw_gradient_(grad_inverse, weight_share, grad_bias, block.inverse, share, floor)
            grad_weight.mul_(block.inverse)
        grad_weight.addcmul_(grad_bias, block.weight, value=-1)  # dL/dmu = dL/dw / lambda - dL/db w
    if quadratic is None:
        return grad_features.mul_(weights), grad_means, None, grad_log_priors
    grad_features.addcmul_(rows.centred, quadratic.grad_squares, value=-1)
    return grad_features.mul_(weights), grad_means, quadratic.grad_raw, grad_log_priors


def _quadratic(squares: Tensor, weights: Tensor, num_classes: int) -> Quadratic:
    grad_raw = squares.new_empty(num_classes, squares.shape[1])
    return Quadratic(squares * weights, torch.zeros_like(squares), grad_raw)


def _weight_share(grad_weight: Tensor, grad_bias: Tensor, block: Block) -> Tensor:
    """(dL/dw - dL/db mu / 2) w (b, d), or its sum over d (b, 1): what w and b, which holds -<mu, w> / 2, pass on."""
    if block.means is None:
        inner = (grad_weight * block.weight).sum(1, keepdim=True)
        return inner.addcmul_(grad_bias, block.squared_norms.unsqueeze(1), value=-0.5)
    return torch.addcmul(grad_weight, grad_bias, block.means, value=-0.5).mul_(block.weight)


def _raw_gradient_(
    grad_inverse: Tensor, weight_share: Tensor, grad_bias: Tensor, inverse: Tensor, share: float, floor: float
) -> None:
    """dL/draw = -(1 - floor / lambda) [weight share + dL/d(1/lambda) / lambda + share dL/db], in place.

    share: d log|Lambda| / dlog lambda / 2, that is d/2 of an isotropic and 1/2 of a diagonal variance.
    """
    weight_share.addcmul_(grad_inverse, inverse).add_(grad_bias, alpha=share)
    torch.addcmul(weight_share, weight_share, inverse, value=-floor, out=grad_inverse).neg_()


def _add_true_class_(
    gradients: Gradients, true: TrueClass, labels: Tensor, tension: Tensor, grad_lkd: Tensor, floor: float
) -> None:
    """Add what only the true class has: the pull t between x and mu_z, and what it does to lambda_z."""
    grad_features, grad_means, grad_raw, _ = gradients
    pull = tension.unsqueeze(1) * true.scaled
    grad_features.add_(pull)
    grad_means.index_add_(0, labels, pull, alpha=-1)
    if grad_raw is None or true.inverse is None:
        return
    stretch = pull * true.difference
    if true.inverse.shape[1] == 1:
        stretch = stretch.sum(1, keepdim=True)
    share = true.difference.shape[1] / true.inverse.shape[1]
    change = (grad_lkd.unsqueeze(1) * share - stretch).mul_(0.5)
    grad_raw.index_add_(0, labels, change.mul_(1 - floor * true.inverse))
