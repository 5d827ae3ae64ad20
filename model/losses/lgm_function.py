"""Both L-GM terms as one autograd function: O(n k) memory, matrix products, gradients in closed form.

Legend: n inputs, k classes, d features, v variances a class (1 or d), z the true class of an input. With the
margined posterior p, r = p - [k = z], g and h the incoming gradients of L_cls and L_lkd, w = mu / lambda:

    R_ik             = g_i r_ik - [k = z] t_i
    dL/dx_i          = -sum_k R_ik (x_i - mu_k) / lambda_k
    dL/dmu_k         = sum_i R_ik (x_i - mu_k) / lambda_k
    dL/dlog lambda_k = sum_i R_ik [(x_i - mu_k)^2 / lambda_k - 1] / 2 + sum_(z = k) [h_i - t_i] / 2
    t_i = h_i - alpha g_i r_iz: how hard the margin and the likelihood term pull x_i and mu_z together

p is the only (n, k) matrix; forward makes it in place of the scores and backward turns it into R by writing
n entries. `lgm_blocks` holds a block of it at a time. Small operations are few, for `lgm_products`' reason: factors
ride along in `value` and `alpha`, and a single block is not sliced.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.losses import lgm_twice
from model.losses.lgm_products import (
    Classes,
    ClassGradients,
    Inputs,
    doubled_distances,
    gradients_,
    products,
    scores_,
)

# Classes handled at a time: a block's parameters and gradients stay in the cache of a core.
CLASS_BLOCK = 1024


class Pull(NamedTuple):
    """What makes R of r: R_iz and its part -t_i, and h_i - t_i, each (n, 1); `scale` multiplies all of R."""

    entry: Tensor
    tension: Tensor
    slack: Tensor
    scale: Tensor | float


class LGMTerms(torch.autograd.Function):
    """(L_cls, L_lkd) of each input; arguments as of `_forward`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        classification, likelihood = _forward(ctx, *arguments)
        return classification.squeeze(1), likelihood.squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_backward_as_a_graph(ctx, grad_cls, grad_lkd), None, None, None
        return *_backward(ctx, grad_cls.unsqueeze(1), grad_lkd.unsqueeze(1)), None, None, None


class LGMMeans(torch.autograd.Function):
    """(L, L_cls, L_lkd) averaged over the batch, L = L_cls + lambda L_lkd: no averages and sum left to autograd."""

    @staticmethod
    def forward(ctx: Any, lambda_: float, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        classification, likelihood = _forward(ctx, *arguments)
        ctx.lambda_, ctx.shape = lambda_, classification.shape
        ctx.set_materialize_grads(False)
        classification, likelihood = classification.mean(), likelihood.mean()
        return torch.add(classification, likelihood, alpha=lambda_), classification, likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        total, classification, likelihood = gradients
        as_a_graph = torch.is_grad_enabled()
        if not as_a_graph and total is not None and classification is None and likelihood is None:
            return None, *_backward_of_total(ctx, total / ctx.shape[0]), None, None, None
        if all(gradient is None for gradient in gradients):
            return (None,) * 8
        grads = _of_terms(*gradients, lambda_=ctx.lambda_, share=1 / ctx.shape[0])
        if as_a_graph:
            return None, *_backward_as_a_graph(ctx, *(grad.expand(ctx.shape[:1]) for grad in grads)), None, None, None
        return None, *_backward(ctx, *(grad.expand(ctx.shape) for grad in grads)), None, None, None


def _of_terms(*gradients: Tensor | None, lambda_: float, share: float) -> tuple[Tensor, Tensor]:
    """g and h of one input, scalars, from the gradients of L, L_cls and L_lkd: None for what was not asked for."""
    zero = torch.zeros_like(next(gradient for gradient in gradients if gradient is not None))
    total, classification, likelihood = (zero if gradient is None else gradient for gradient in gradients)
    return (total + classification) * share, torch.add(likelihood, total, alpha=lambda_) * share


def _forward(
    ctx: Any,
    features: Tensor,
    means: Tensor,
    raw: Tensor | None,
    log_priors: Tensor,
    labels: Tensor,
    floor: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """L_cls and L_lkd (n, 1); lambda = floor + exp(raw), raw None for unit variances."""
    difference, centred, centre = _centred(features, means, labels)  # first of all: it raises IndexError
    index = labels.unsqueeze(1)
    squares = None if raw is None else products(centred, centred, raw.shape[1])
    scores, classes = _scores(centred, squares, means, centre, raw, log_priors, floor)
    own_inverse = None if classes.inverse is None else classes.inverse.index_select(0, labels)
    distances = doubled_distances(difference, own_inverse)
    classification, residuals, own = _cross_entropy_(scores, index, distances * (-0.5 * alpha))
    made = (index, own, residuals, centred, squares, *classes)
    ctx.save_for_backward(features, means, raw, log_priors, labels, *made)
    ctx.floor, ctx.alpha = floor, alpha
    if classes.half_log_determinants is None:
        return classification, distances * 0.5
    return classification, torch.add(classes.half_log_determinants.index_select(0, labels), distances, alpha=0.5)


def _backward_as_a_graph(ctx: Any, grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
    """From g and h (n,) of each input, by what can be differentiated again."""
    return lgm_twice.gradients((*ctx.saved_tensors[:5], ctx.floor, ctx.alpha), grad_cls, grad_lkd)


def _backward_of_total(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """From one gradient (a scalar) of every L_cls + lambda L_lkd: R is p but for n entries, written in place.

    `data`, because what is saved may not change under autograd's eyes; yet a second backward pass writes the same.
    """
    labels, index, own, residuals, *saved = ctx.saved_tensors[4:]
    slack = own * ctx.alpha
    tension = slack.neg().add_(ctx.lambda_)
    pull = Pull(own - tension, tension, slack, grad)
    return _from_residuals(ctx, labels, residuals.data.scatter_(1, index, pull.entry), pull, *saved)


def _backward(ctx: Any, grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
    """From g and h (n, 1) of each input."""
    labels, index, own, residuals, *saved = ctx.saved_tensors[4:]
    own = own * grad_cls
    slack = own * ctx.alpha
    tension = grad_lkd - slack
    pull = Pull(own - tension, tension, slack, 1.0)
    return _from_residuals(ctx, labels, (residuals * grad_cls).scatter_(1, index, pull.entry), pull, *saved)


def _from_residuals(
    ctx: Any,
    labels: Tensor,
    residuals: Tensor,
    pull: Pull,
    centred: Tensor,
    squares: Tensor | None,
    *saved: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of features, means, raw log-variances and log-priors from R (n, k)."""
    classes = Classes(*saved)
    slack = centred.new_zeros(residuals.shape[1], 1).index_add_(0, labels, pull.slack)
    grads = _all_classes(centred, squares, classes, residuals, slack, pull)
    grad_features, grad_means, grad_raw, grad_bias = grads
    grad_bias.index_add_(0, labels, pull.tension)
    if grad_raw is not None and classes.inverse is not None:
        grad_raw.addcmul_(grad_raw, classes.inverse, value=-ctx.floor)  # dlog lambda / draw = 1 - floor / lambda
    return grad_features, grad_means, grad_raw, grad_bias.mul_(pull.scale).squeeze(1)


def _centred(features: Tensor, means: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - mu_z, x - c and c: a true class's mean is in the midst of the features, and any one of them will do."""
    own = means.index_select(0, labels)
    centre = own[0]
    return features - own, features - centre, centre


def _blocks(columns: Tensor, *rows: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """CLASS_BLOCK classes at a time: columns of the first tensor, rows of the others."""
    num_classes = columns.shape[1]
    if num_classes <= CLASS_BLOCK:
        yield columns, *rows
        return
    for start in range(0, num_classes, CLASS_BLOCK):
        chosen = slice(start, start + CLASS_BLOCK)
        yield columns[:, chosen], *(None if tensor is None else tensor[chosen] for tensor in rows)


def _scores(
    centred: Tensor,
    squares: Tensor | None,
    means: Tensor,
    centre: Tensor,
    raw: Tensor | None,
    log_priors: Tensor,
    floor: float,
) -> tuple[Tensor, Classes]:
    """Scores (n, k) without the margin, but for a constant of the row, and what they are made of."""
    scores = centred.new_empty(centred.shape[0], means.shape[0])
    classes = Classes(torch.empty_like(means), None, None, None)
    if raw is not None:
        column = raw.new_empty(raw.shape[0], 1)
        classes = Classes(classes.weight, torch.empty_like(raw), torch.empty_like(raw), column)
    for out, mu, block_raw, log_weights, weight, inverse, norms, half_log_determinants in _blocks(
        scores, means, raw, log_priors, *classes
    ):
        torch.sub(mu, centre, out=weight)
        block = Classes(weight, inverse, norms, half_log_determinants)
        scores_(out, Inputs(centred, squares), block, block_raw, log_weights, floor)
    return scores, classes


def _cross_entropy_(scores: Tensor, index: Tensor, margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L_cls (n, 1), p written over the scores and r_z (n, 1); margins (n, 1) are zero or less.

    One exponential an entry serves both: with the largest posterior 1 / sum_k exp(score_k - top),
    the normaliser is top - log of it.
    """
    scores.scatter_add_(1, index, margins)
    top = scores.amax(1, keepdim=True)
    behind = top - scores.gather(1, index)
    residuals = torch.softmax(scores, 1, out=scores)
    classification = behind.sub_(residuals.amax(1, keepdim=True).log_())
    own = residuals.gather(1, index).sub_(1)
    return classification, residuals, own


Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor]


def _all_classes(
    centred: Tensor, squares: Tensor | None, classes: Classes, residuals: Tensor, slack: Tensor, pull: Pull
) -> Gradients:
    """Gradients of features, means and log-variances, and sums over the batch of R (k, 1), which lack the scale."""
    grad_features, grad_means = torch.empty_like(centred), torch.empty_like(classes.weight)
    sums, grad_squares, grad_log = centred.new_empty(grad_means.shape[0], 1), None, None
    if squares is not None and classes.inverse is not None:
        grad_squares, grad_log = torch.empty_like(squares), torch.empty_like(classes.inverse)
    into = Inputs(grad_features, grad_squares)
    blocks = _blocks(residuals, *classes[:3], slack, grad_means, grad_log, sums)
    for number, (part, weight, inverse, norms, block_slack, block_means, block_log, block_sums) in enumerate(blocks):
        grads = ClassGradients(block_means, block_log, block_sums)
        block = Classes(weight, inverse, norms, None)
        kept = min(number, 1)  # the first block overwrites the sums, which are empty
        gradients_(grads, into, part, Inputs(centred, squares), block, block_slack, kept=kept)
        block_means.mul_(pull.scale)
        if block_log is not None:
            block_log.mul_(pull.scale)
    # Rows of r sum to zero, those of R to -t.
    grad_features.addcmul_(centred, pull.tension if grad_squares is None else grad_squares.neg_())
    return grad_features.mul_(pull.scale), grad_means, grad_log, sums
