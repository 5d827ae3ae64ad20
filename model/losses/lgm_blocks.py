"""Both L-GM terms without the n x k matrix: block by block of classes, which may be one process's share of them.

Legend: n inputs, m of them with a class of this share, k classes of this share, b classes of a block, d features,
v variances a class (1 or d), z the true class of an input.

Forward keeps of every block its largest score and a sum, as Milakov and Gimelshein's "Online normalizer calculation
for softmax", 2018, arXiv 1805.02867 (algorithm 3): with top the largest so far,

    top' = max(top, max_k s_k);    sum' = sum exp(top - top') + sum_k exp(s_k - top')

Backward makes each block's scores again, the posterior exp(s_k - top) / sum of them, and from there on all is as in
`lgm_function`, whose formulas these are. Beside what comes in and the gradients that go out there are O(n b + b d)
numbers. Where classes are spread over processes, the same two reductions join them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import gaussian
from model.devices import Devices
from model.errors import ConfigurationError
from model.losses.lgm_products import (
    Classes,
    ClassGradients,
    Inputs,
    doubled_distances,
    gradients_,
    products,
    scores_,
)
from model.part import Part


class Head(NamedTuple):
    """Means (k, d), raw log-variances (k, v) or None for unit ones, log priors (k); lambda = floor + exp(raw)."""

    means: Tensor
    raw: Tensor | None
    log_priors: Tensor
    floor: float


class Layout(NamedTuple):
    """Where the true classes are.

    centre: c (d), the same for all processes; as in `lgm_function`, any true class's mean will do. rows: inputs (m,)
    whose class is here, in the order of classes (m,), which ascend and lie in [0, k). peers: who holds the others.
    """

    centre: Tensor
    rows: Tensor
    classes: Tensor
    block_size: int
    peers: Devices


def layout_of(labels: Tensor, means: Tensor, part: Part, peers: Devices, block_size: int) -> Layout:
    """Of labels (n,) where this process holds the means of a part of the classes.

    Whoever holds the first input's class gives its mean for a centre. Raises IndexError for a label of no class.
    """
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= part.total:
        raise IndexError(f"labels from {low} to {high} of {part.total} classes")
    own = labels - part.first
    rows = torch.nonzero((own >= 0) & (own < len(means))).squeeze(1)
    classes, order = own[rows].sort(stable=True)
    first = int(own[0])
    centre = means[first].detach().clone() if 0 <= first < len(means) else torch.zeros_like(means[0])
    return Layout(peers.sum_(centre), rows[order], classes, block_size, peers)


class Block(NamedTuple):
    """Some classes: which of those here, their scores (n, b) with margins, and the t inputs that are of them."""

    chosen: slice
    scores: Tensor
    classes: Classes
    true: slice
    rows: Tensor
    columns: Tensor


class LGMBlocks(torch.autograd.Function):
    """(L_cls, L_lkd) of each input (n,)."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        means: Tensor,
        raw: Tensor | None,
        log_priors: Tensor,
        floor: float,
        alpha: float,
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        head, peers = Head(means, raw, log_priors, floor), layout.peers
        halves, distances = _of_true_classes(features, head, layout)
        margins, own = distances * (-0.5 * alpha), torch.empty_like(distances)
        top = features.new_full((len(features), 1), -torch.inf)
        sums = torch.zeros_like(top)
        for block in _blocks(_inputs(features, raw, layout), head, layout, margins):
            own[block.true] = block.scores[block.rows, block.columns].unsqueeze(1)
            _include_(block.scores, top, sums)
        highest = peers.maximum_(top.clone())
        joined = torch.cat([sums.mul_(top.sub_(highest).exp_()), features.new_zeros(len(features), 3)], 1)
        joined[layout.rows, 1:] = torch.cat([own, halves, distances], 1)
        sums, own, halves, distances = peers.sum_(joined).chunk(4, 1)
        classification = (highest - own).add_(sums.log())
        ctx.save_for_backward(features, means, raw, log_priors, margins, classification, highest, sums)
        ctx.floor, ctx.alpha, ctx.layout = floor, alpha, layout
        return classification.squeeze(1), torch.add(halves, distances, alpha=0.5).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_cls: Tensor, grad_lkd: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ConfigurationError(
                "create_graph needs all classes at once, in one process: a block_size of them all"
            )
        features, means, raw, log_priors, margins, classification, top, sums = ctx.saved_tensors
        head, layout, grad_cls = Head(means, raw, log_priors, ctx.floor), ctx.layout, grad_cls.unsqueeze(1)
        own = torch.expm1(-classification).mul_(grad_cls)
        slack = own * ctx.alpha
        tension = grad_lkd.unsqueeze(1) - slack
        entries, share = own - tension, grad_cls / sums
        inputs = _inputs(features, raw, layout)
        into = Inputs._make(None if part is None else torch.zeros_like(part) for part in inputs)
        grads = _empty_gradients(head)
        for block in _blocks(inputs, head, layout, margins):
            residuals = block.scores.sub_(top).exp_().mul_(share)
            residuals[block.rows, block.columns] = entries[block.rows].squeeze(1)
            _block_gradients_(_part_of(grads, block), into, residuals, inputs, block, slack, tension, ctx.floor)
        grad_features = into.centred
        if into.squares is not None:
            grad_features.addcmul_(inputs.centred, into.squares, value=-1)
        layout.peers.sum_(grad_features)
        if into.squares is None:  # rows of r sum to zero, those of R to -t
            grad_features.addcmul_(inputs.centred, tension)
        return grad_features, grads.means, grads.log_variances, grads.sums.squeeze(1), None, None, None


def _inputs(features: Tensor, raw: Tensor | None, layout: Layout) -> Inputs:
    centred = features - layout.centre
    return Inputs(centred, None if raw is None else products(centred, centred, raw.shape[1]))


def _of_true_classes(features: Tensor, head: Head, layout: Layout) -> tuple[Tensor, Tensor]:
    """log|Lambda_z| / 2 and twice d_z (m, 1). Raises IndexError for a class outside [0, k)."""
    difference = features.index_select(0, layout.rows) - head.means.index_select(0, layout.classes)
    if head.raw is None:
        return difference.new_zeros(len(difference), 1), doubled_distances(difference, None)
    raw = head.raw.index_select(0, layout.classes)
    inverse = torch.empty_like(raw)
    log_variances = gaussian.log_floored_(inverse, raw, head.floor)
    halves = gaussian.half_log_determinant(log_variances, difference.shape[1])
    return halves.unsqueeze(1), doubled_distances(difference, inverse)


def _blocks(inputs: Inputs, head: Head, layout: Layout, margins: Tensor) -> Iterator[Block]:
    """Block after block in the same memory; asking for bounds is the one time that a device is waited for."""
    num_classes, size = len(head.means), min(layout.block_size, len(head.means))
    scores, memory = inputs.centred.new_empty(len(inputs.centred) * size), _empty_classes(head, size)
    starts = range(0, num_classes, size)
    bounds = torch.searchsorted(layout.classes, torch.tensor([*starts, num_classes], device=layout.classes.device))
    edges = bounds.tolist()
    for start, first, last in zip(starts, edges, edges[1:], strict=False):
        chosen, true = slice(start, min(start + size, num_classes)), slice(first, last)
        raw = None if head.raw is None else head.raw[chosen]
        width = chosen.stop - start
        classes = Classes._make(None if part is None else part[:width] for part in memory)
        torch.sub(head.means[chosen], layout.centre, out=classes.weight)
        out = scores[: len(inputs.centred) * width].view(-1, width)
        scores_(out, inputs, classes, raw, head.log_priors[chosen], head.floor)
        block = Block(chosen, out, classes, true, layout.rows[true], layout.classes[true] - start)
        out[block.rows, block.columns] += margins[true].squeeze(1)
        yield block


def _empty_classes(head: Head, size: int) -> Classes:
    weight = head.means.new_empty(size, head.means.shape[1])
    if head.raw is None:
        return Classes(weight, None, None, None)
    inverse, norms, halves = (head.raw.new_empty(size, columns) for columns in (*[head.raw.shape[1]] * 2, 1))
    return Classes(weight, inverse, norms, halves)


def _include_(scores: Tensor, top: Tensor, sums: Tensor) -> None:
    """Let a block's scores, which are overwritten, into the largest so far and the sum of exp(score - largest)."""
    highest = torch.maximum(top, scores.amax(1, keepdim=True))
    sums.mul_(top.sub_(highest).exp_()).add_(scores.sub_(highest).exp_().sum(1, keepdim=True))
    top.copy_(highest)


def _empty_gradients(head: Head) -> ClassGradients:
    log_variances = None if head.raw is None else torch.empty_like(head.raw)
    return ClassGradients(torch.empty_like(head.means), log_variances, head.means.new_empty(len(head.means), 1))


def _part_of(grads: ClassGradients, block: Block) -> ClassGradients:
    return ClassGradients._make(None if part is None else part[block.chosen] for part in grads)


def _block_gradients_(
    grads: ClassGradients,
    into: Inputs,
    residuals: Tensor,
    inputs: Inputs,
    block: Block,
    slack: Tensor,
    tension: Tensor,
    floor: float,
) -> None:
    """Of a block's means, raw log-variances and log priors, and its share of the inputs'."""
    own_slack = torch.zeros_like(grads.sums).index_add_(0, block.columns, slack[block.rows])
    gradients_(grads, into, residuals, inputs, block.classes, own_slack, kept=1)
    grads.sums.index_add_(0, block.columns, tension[block.rows])
    if grads.log_variances is not None and block.classes.inverse is not None:
        # dlog lambda / draw = 1 - floor / lambda
        grads.log_variances.addcmul_(grads.log_variances, block.classes.inverse, value=-floor)
