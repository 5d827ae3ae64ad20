"""A mixture of a million classes, spread over processes: each holds the Gaussians of its own classes only.

Legend: n inputs, k classes of all processes, s of this one, d features. Every process calls with the same batch, in
the same order, and has the same answer; `torch.distributed` must be initialised.

    shard = MixtureShard.new(num_classes, num_features, variance="isotropic")
    criterion = ShardedLGMLoss(shard, alpha=0.3, lambda_=0.1)
    criterion(features, labels).total.backward()

In a data-parallel loop features are gathered first (`Devices.gather`), and the shard is no part of what
DistributedDataParallel wraps: its gradients are whole where they are.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.errors import ConfigurationError
from model.losses.lgm import LossTerms, averaged, check_batch
from model.losses.lgm_blocks import Layout, LGMBlocks, Peers
from model.losses.lgm_function import CLASS_BLOCK
from model.mixture import GaussianMixture, Prior, Variance
from model.part import Part
from model.schedule import Schedule, as_schedule


class Group(Peers):
    """The processes of a group, the default one for None; NCCL on GPUs, gloo on CPUs."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.SUM, self._group)
        return values

    def maximum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.MAX, self._group)
        return values


class MixtureShard(nn.Module):
    """Classes [first, last) of a mixture. gaussians: theirs; its priors are those of the whole mixture.

    Raises ConfigurationError where gaussians are not as many as the part says.
    """

    def __init__(self, gaussians: GaussianMixture, part: Part, group: Group):
        super().__init__()
        if gaussians.num_classes != part.last - part.first:
            raise ConfigurationError(f"{gaussians.num_classes} Gaussians for classes {part.first} to {part.last}")
        self.gaussians = gaussians
        self.part = part
        self.group = group

    @classmethod
    def new(
        cls,
        num_classes: int,
        num_features: int,
        *,
        variance: Variance | str = "unit",
        prior: Prior | str = "uniform",
        variance_floor: float = 1e-3,
        initial_scale: float = 1.0,
        generator: torch.Generator | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> "MixtureShard":
        """This process's share of a fresh mixture; arguments as of GaussianMixture, but each needs its own generator.

        Raises ConfigurationError for fewer classes than processes.
        """
        peers = Group(group)
        part = _part(num_classes, peers)
        gaussians = GaussianMixture(
            part.last - part.first,
            num_features,
            variance=variance,
            prior=prior,
            variance_floor=variance_floor,
            initial_scale=initial_scale,
            generator=generator,
        )
        cast(Tensor, gaussians.raw_log_priors).data.fill_(-math.log(num_classes))
        return cls(gaussians, part, peers)

    @classmethod
    def of(cls, mixture: GaussianMixture, *, group: dist.ProcessGroup | None = None) -> "MixtureShard":
        """This process's share of a mixture that every process holds. Raises ConfigurationError as `new` does."""
        peers = Group(group)
        part = _part(mixture.num_classes, peers)
        return cls(cut(mixture, part), part, peers)

    @property
    def log_priors(self) -> Float[Tensor, " s"]:
        """log p(k) of this process's classes, normalised over all; in nats."""
        raw = cast(Tensor, self.gaussians.raw_log_priors)
        return cast(Tensor, _LogSoftmax.apply(raw, self.group)) if self.gaussians.prior == "learned" else raw

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The most likely class of each input, the first of equals."""
        best, index = self.gaussians.best(features, self.log_priors)
        highest = self.group.maximum_(best.clone())
        return -self.group.maximum_(torch.where(best == highest, -index - self.part.first, -self.part.total))


class ShardedLGMLoss(nn.Module):
    """LGMLoss over the classes of all processes: the same terms, and the same gradients of features and shards.

    Two reductions of n numbers a column join the shards in forward, one of (n, d) in backward, and no process holds
    more than (n, block_size) scores. alpha, lambda_, step: as of LGMLoss.

    Raises ConfigurationError for a coefficient below zero, a block_size below one, and what does not fit.
    """

    def __init__(
        self,
        shard: MixtureShard,
        *,
        alpha: float | Schedule = 0.1,
        lambda_: float | Schedule = 0.1,
        block_size: int = CLASS_BLOCK,
    ):
        super().__init__()
        if block_size < 1:
            raise ConfigurationError(f"block_size must be at least 1, got {block_size}")
        self.shard = shard
        self.block_size = block_size
        self._alpha = as_schedule(alpha)
        self._lambda = as_schedule(lambda_)
        self.step = 0

    @property
    def alpha(self) -> float:
        """The margin coefficient at this step."""
        return self._alpha(self.step)

    @property
    def lambda_(self) -> float:
        """The likelihood weight at this step."""
        return self._lambda(self.step)

    def forward(self, features: Tensor, labels: Tensor) -> LossTerms:
        """Loss of features (n, d) with labels (n,) in [0, k), both the same on every process."""
        alpha, lambda_ = self.alpha, self.lambda_
        check_batch(features, labels, self.shard.gaussians.num_features)
        terms = averaged(*sharded_terms(features, labels, self.shard, alpha, block_size=self.block_size), lambda_)
        if self.training and torch.is_grad_enabled():
            self.step += 1
        return terms

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def sharded_terms(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    shard: MixtureShard,
    alpha: float,
    *,
    block_size: int = CLASS_BLOCK,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(L_cls, L_lkd) of each input, in nats. Raises ConfigurationError for a label outside [0, k)."""
    gaussians, num_classes = shard.gaussians, shard.part.total
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ConfigurationError(f"labels must lie in [0, {num_classes}), got {low} to {high}")
    raw = None if gaussians.variance == "unit" else gaussians.raw_log_variances
    layout = _layout(gaussians.means.detach(), labels, shard, block_size)
    terms: tuple[Tensor, Tensor] = LGMBlocks.apply(
        features, gaussians.means, raw, shard.log_priors, gaussians.variance_floor, alpha, layout
    )
    return terms


def cut(mixture: GaussianMixture, part: Part) -> GaussianMixture:
    """The Gaussians of those classes, copied, with the priors that they have among all of them."""
    shard = GaussianMixture(
        part.last - part.first,
        mixture.num_features,
        variance=mixture.variance,
        prior=mixture.prior,
        variance_floor=mixture.variance_floor,
    ).to(mixture.means)
    shard.load_state_dict({name: values[part.rows] for name, values in mixture.state_dict().items()})
    return shard


def _part(num_classes: int, group: Group) -> Part:
    if num_classes < group.size:
        raise ConfigurationError(f"num_classes must be at least the {group.size} processes, got {num_classes}")
    return Part.of(num_classes, rank=group.rank, size=group.size)


def _layout(means: Tensor, labels: Tensor, shard: MixtureShard, block_size: int) -> Layout:
    """Who holds the first input's class gives its mean for a centre; each knows the inputs of its own classes."""
    own = labels.long() - shard.part.first
    rows = torch.nonzero((own >= 0) & (own < len(means))).squeeze(1)
    classes, order = own[rows].sort(stable=True)
    first = int(own[0])
    centre = means[first].clone() if 0 <= first < len(means) else torch.zeros_like(means[0])
    return Layout(shard.group.sum_(centre), rows[order], classes, block_size, shard.group)


class _LogSoftmax(torch.autograd.Function):
    """log softmax over the numbers (s) of all processes."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, group: Group) -> Tensor:
        top = group.maximum_(raw.max())
        total = group.sum_((raw - top).exp().sum())
        log_priors = raw - top - total.log()
        ctx.save_for_backward(log_priors)
        ctx.group = group
        return log_priors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (log_priors,) = ctx.saved_tensors
        return gradient - log_priors.exp() * ctx.group.sum_(gradient.sum()), None
