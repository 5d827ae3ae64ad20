"""The large-margin Gaussian-mixture (L-GM) loss, exact, in O(n k) memory or, of many classes, in O(n + k).

Wan, Zhong, Li, Chen, "Rethinking Feature Distribution for Loss Functions in Image Classification",
CVPR 2018, arXiv 1803.02988. Legend: n inputs, k classes, d features, z the true class of an input.

    d_k  = (x - mu_k)^T Lambda_k^-1 (x - mu_k) / 2
    L_cls = -log softmax_z [ log p(k) - log|Lambda_k| / 2 - d_k - [k = z] alpha d_z ]      (equations 9, 10)
    L_lkd = d_z + log|Lambda_z| / 2                                                        (equation 7)
    L     = L_cls + lambda L_lkd                                                           (equation 8)

Both terms use the same covariances, the log-determinant stands in both, and the margin exists in training
only: inference asks the mixture.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model import gaussian
from model.errors import ConfigurationError
from model.losses.lgm_blocks import LGMBlocks, layout_of
from model.losses.lgm_function import CLASS_BLOCK, LGMMeans, LGMTerms
from model.mixture import GaussianMixture, check_count
from model.schedule import Schedule, as_schedule, check_value

# Scores (n, k) that are held whole where the caller does not say: 64 MB of float32.
LARGEST_WHOLE = 2**24


class LossTerms(NamedTuple):
    """Batch means, each a scalar: total = classification + lambda * likelihood."""

    total: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    likelihood: Float[Tensor, ""]


class LGMLoss(nn.Module):
    """The L-GM loss over a GaussianMixture; alpha = 0 is the GM loss, alpha = lambda = 0 cross entropy.

        mixture = GaussianMixture(num_classes, num_features)
        criterion = LGMLoss(mixture, alpha=0.3, lambda_=0.1)
        criterion(features, labels).total.backward()

    alpha, lambda_: zero or more, or a Schedule over training steps. A step is one call in training mode
    with gradients enabled; it is counted here and saved with `state_dict`, so a resumed run
    goes on where it was. A forward pass that is repeated, as activation checkpointing does, counts as a step: keep
    the loss out of it, `block_size` saves its memory. Its gradients can be differentiated again (`create_graph=True`,
    for a penalty on them) where all classes are handled at once. Compile the network, not a loss with a schedule,
    whose value would be compiled anew at every step; and for torch.func take cross entropy over `mixture(features)`.

    block_size: classes handled at a time. Below the number of classes the (n, k) matrix of scores is never held:
    backward makes each block's again, for a quarter more products. None does so above n k = 2^24, by 1,024 classes.

    Of a mixture that is spread over processes each calls with the same batch and has the terms and the features'
    gradients of all classes, and the gradients of its own. Two reductions of n numbers a column join them in forward,
    one of (n, d) in backward, and no process holds more than (n, block_size) scores.

    Raises ConfigurationError for a coefficient below zero or a block_size that is no integer from one on.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        *,
        alpha: float | Schedule = 0.1,
        lambda_: float | Schedule = 0.1,
        block_size: int | None = None,
    ):
        super().__init__()
        if block_size is not None:
            check_count("block_size", block_size)
        self.mixture = mixture
        self.block_size = block_size
        self._alpha = as_schedule(alpha)
        self._lambda = as_schedule(lambda_)
        self.step = 0

    @property
    def alpha(self) -> float:
        """The margin coefficient at this step. Raises ConfigurationError unless it is finite and zero or more."""
        alpha = self._alpha(self.step)
        check_value("alpha", alpha)
        return alpha

    @property
    def lambda_(self) -> float:
        """The likelihood weight at this step. Raises ConfigurationError as alpha does."""
        lambda_ = self._lambda(self.step)
        check_value("lambda_", lambda_)
        return lambda_

    def forward(self, features: Tensor, labels: Tensor) -> LossTerms:
        """Loss of features (n, d) with labels (n,) in [0, k).

        Raises ConfigurationError when shapes do not fit the mixture, the batch is empty, a schedule gives what is no
        coefficient, or a label is outside [0, k) (on a CPU; on other devices the indexing kernels assert it without a
        synchronisation).
        """
        mixture, alpha, lambda_ = self.mixture, self.alpha, self.lambda_
        _check_batch(features, labels, mixture)
        try:
            if _block_size(self.block_size, features, mixture) is None:
                terms = LossTerms(*LGMMeans.apply(lambda_, *_arguments(features, labels, mixture, alpha)))
            else:
                each = lgm_terms(features, labels, mixture, alpha, block_size=self.block_size)
                classification, likelihood = (term.mean() for term in each)
                total = torch.add(classification, likelihood, alpha=lambda_)
                terms = LossTerms(total, classification, likelihood)
        except IndexError as error:  # indexing by them checks labels anyway
            low, high = int(labels.min()), int(labels.max())
            raise ConfigurationError(f"labels must lie in [0, {mixture.num_classes}), got {low} to {high}") from error
        if self.training and torch.is_grad_enabled():
            vars(self)["step"] += 1  # nn.Module.__setattr__ takes longer than a sum over the batch
        return terms

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def lgm_terms(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    mixture: GaussianMixture,
    alpha: float,
    *,
    block_size: int | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(L_cls, L_lkd) of each input, in nats, float32 or wider. block_size: as of LGMLoss."""
    arguments, size = _arguments(features, labels, mixture, alpha), _block_size(block_size, features, mixture)
    if size is None:
        terms: tuple[Tensor, Tensor] = LGMTerms.apply(*arguments)
        return terms
    features, means, raw, log_priors, labels, floor, alpha = arguments
    layout = layout_of(labels, means, mixture.part, mixture.peers, size)
    terms = LGMBlocks.apply(features, means, raw, log_priors, floor, alpha, layout)
    return terms


def _block_size(asked: int | None, features: Tensor, mixture: GaussianMixture) -> int | None:
    """Classes handled at a time, or None where all are at once, for which they must be here."""
    if not mixture.peers.alone:
        return asked or CLASS_BLOCK
    num_classes = mixture.num_classes
    if asked is None:
        return None if features.shape[0] * num_classes <= LARGEST_WHOLE else CLASS_BLOCK
    return None if asked >= num_classes else asked


def _arguments(features: Tensor, labels: Tensor, mixture: GaussianMixture, alpha: float) -> tuple[Any, ...]:
    """In the widest dtype of features and mixture, float32 at least."""
    means, log_priors = cast(Tensor, mixture.means), mixture.log_priors
    raw: Tensor | None = None if mixture.variance == "unit" else mixture.raw_log_variances
    if features.dtype is not torch.float32 or means.dtype is not torch.float32:
        dtype = torch.promote_types(gaussian.returned_dtype(features), means.dtype)
        features, means, log_priors = features.to(dtype), means.to(dtype), log_priors.to(dtype)
        raw = None if raw is None else raw.to(dtype)
    return features, means, raw, log_priors, labels.long(), mixture.variance_floor, alpha


def _check_batch(features: Tensor, labels: Tensor, mixture: GaussianMixture) -> None:
    shape, num_features = features.shape, mixture.num_features
    if len(shape) != 2 or shape[1] != num_features or shape[0] == 0:
        raise ConfigurationError(f"features must be (n >= 1, {num_features}) for this mixture, got {tuple(shape)}")
    if labels.shape != shape[:1] or labels.is_floating_point():
        raise ConfigurationError(f"labels must be {shape[0]} integers, got {labels.dtype} {tuple(labels.shape)}")
