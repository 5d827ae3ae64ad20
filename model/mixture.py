"""GaussianMixture: the head of a network, one Gaussian per class over its features."""

import math
from numbers import Integral
from typing import cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model import gaussian
from model.devices import ALONE, Devices
from model.errors import ConfigurationError
from model.network_config import Prior, Variance

# Classes that a prediction looks at together.
CLASS_BLOCK = 1024


class GaussianMixture(nn.Module):
    """Class means, variances and priors; called on features (n, d) it returns the log joint (n, k) in nats.

    p(x) = sum_k p(k) N(x; mu_k, Lambda_k)   (Wan et al. 2018, equations 3 to 5)

    variance: "unit" (fixed at one), "isotropic" (one per class) or "diagonal" (one per class and feature).
    prior: "uniform", "counts" (set once from label counts by `set_priors`) or "learned".
    variance_floor: variances never fall below it: lambda = floor + exp(raw), smooth and never stuck.
    initial_scale: standard deviation of the normal the means start from; sqrt(2 / d) by default, which sets two means
    about 2 apart, of unit spread, whatever d is. Much further apart, the first losses are those of images far from
    all means, and their gradients can leave features without any use.
    peers: processes that the classes are spread over, `part` of them here; each needs a generator of its own.

    Raises ConfigurationError for sizes that are no integers from one on, unknown forms, a floor outside (0, 1), an
    initial_scale that is not finite and above zero, fewer classes than peers.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        variance: Variance | str = "unit",
        prior: Prior | str = "uniform",
        variance_floor: float = 1e-3,
        initial_scale: float | None = None,
        generator: torch.Generator | None = None,
        peers: Devices = ALONE,
    ):
        super().__init__()
        _check(num_classes, num_features, variance, prior, variance_floor, initial_scale, peers)
        self.peers = peers
        self.part = peers.part(num_classes)
        num_here = self.part.last - self.part.first
        self.variance = cast(Variance, variance)
        self.prior = cast(Prior, prior)
        self.variance_floor = variance_floor
        self.means = nn.Parameter(torch.empty(num_here, num_features))
        scale = math.sqrt(2 / num_features) if initial_scale is None else initial_scale
        nn.init.normal_(self.means, std=scale, generator=generator)
        if variance != "unit":
            columns = 1 if variance == "isotropic" else num_features
            start = math.log1p(-variance_floor)  # so that every variance starts at one
            self.raw_log_variances = nn.Parameter(torch.full((num_here, columns), start))
        priors = torch.full((num_here,), -math.log(num_classes))
        if prior == "learned":
            self.raw_log_priors = nn.Parameter(priors)
        else:
            self.register_buffer("raw_log_priors", priors)

    @property
    def num_classes(self) -> int:
        """k, of all processes."""
        return self.part.total

    @property
    def num_features(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def log_variances(self) -> Float[Tensor, "k v"] | None:
        """Floored log-variances, (k, 1) isotropic or (k, d) diagonal; None for unit variances."""
        if self.variance == "unit":
            return None
        return gaussian.log_floored(self.raw_log_variances, self.variance_floor)

    @property
    def log_priors(self) -> Float[Tensor, " k"]:
        """log p(k) of the classes here, normalised over all; in nats."""
        raw = cast(Tensor, self.raw_log_priors)
        return self.peers.log_softmax(raw) if self.prior == "learned" else raw

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Log joint in nats, no margin; argmax is the prediction, softmax the posterior.

        Raises ConfigurationError when features are not (n, d), and where the classes are spread over processes:
        none has the scores of all.
        """
        self._check_shape(features)
        if not self.peers.alone:
            raise ConfigurationError(
                f"the log joint needs all {self.num_classes} classes; {len(self.means)} are here, others with peers"
            )
        return gaussian.log_joint(features, self.means, self.log_variances, self.log_priors)

    def log_likelihood(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log p(x) in nats; higher = more likely."""
        return gaussian.log_likelihood(self(features))

    @torch.no_grad()
    def best(self, features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Largest log joint of each input in nats, and its class, the first of equals; never the (n, k) matrix."""
        here, index = self._best_here(features)
        highest = self.peers.maximum_(here.clone())
        return highest, -self.peers.maximum_(torch.where(here < highest, -self.num_classes, -index - self.part.first))

    def _best_here(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of the classes here, counted from the first of them."""
        log_variances, log_priors = self.log_variances, self.log_priors
        self._check_shape(features)
        highest = features.new_full((len(features),), -math.inf, dtype=gaussian.returned_dtype(features))
        index = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        for start in range(0, len(self.means), CLASS_BLOCK):
            rows = slice(start, start + CLASS_BLOCK)
            variances = None if log_variances is None else log_variances[rows]
            value, found = gaussian.log_joint(features, self.means[rows], variances, log_priors[rows]).max(1)
            index = torch.where(value > highest, found + start, index)
            highest = torch.maximum(highest, value)
        return highest, index

    def predict(self, features: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The most likely class of each input, as the argmax of the log joint."""
        return self.best(features)[1]

    @torch.no_grad()
    def set_priors(self, label_counts: Int[Tensor, " k"]) -> None:
        """Set p(k) from label counts (k,), each smoothed by one so that no class becomes impossible."""
        if label_counts.shape != (self.num_classes,) or bool((label_counts < 0).any()):
            raise ConfigurationError(f"label_counts must be {self.num_classes} counts of zero or more")
        smoothed = label_counts.to(self.means) + 1.0
        cast(Tensor, self.raw_log_priors).copy_(smoothed[self.part.rows].log() - smoothed.sum().log())

    @torch.no_grad()
    def set_means(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Set each class's mean to that of its features; a class without any keeps the one it has.

        Raises ConfigurationError when features are not (n, d) and finite, or labels not n integers in [0, k).
        """
        features, labels = self._of_classes_here(features, labels)
        counts = torch.bincount(labels, minlength=len(self.means)).unsqueeze(1)
        sums = _sums(features, labels, len(self.means))
        self.means.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), self.means))

    @torch.no_grad()
    def set_variances(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Set each class's variances to those of its features about its mean, floored; unit ones stay one.

        A class with fewer than two features keeps those it has. Raises ConfigurationError as `set_means` does.
        """
        features, labels = self._of_classes_here(features, labels)
        if self.variance == "unit":
            return
        squares = (features - self.means.to(features)[labels]).square()
        if self.variance == "isotropic":
            squares = squares.mean(1, keepdim=True)
        counts = torch.bincount(labels, minlength=len(self.means)).unsqueeze(1)
        sums = _sums(squares, labels, len(self.means))
        above_floor = (sums / counts.clamp_min(1) - self.variance_floor).clamp_min(1e-3 * self.variance_floor)
        self.raw_log_variances.copy_(torch.where(counts > 1, above_floor.log(), self.raw_log_variances))

    def shard(self, peers: Devices) -> "GaussianMixture":
        """This process's share of a mixture that all of them hold, copied. Raises ConfigurationError as it does."""
        share = GaussianMixture(
            self.num_classes,
            self.num_features,
            variance=self.variance,
            prior=self.prior,
            variance_floor=self.variance_floor,
            generator=torch.Generator(),  # not the process's own: what is drawn is overwritten
            peers=peers,
        ).to(self.means)
        share.load_state_dict({name: share.rows_here(values) for name, values in self.state_dict().items()})
        return share

    def rows_here(self, values: Tensor) -> Tensor:
        """A copy of the rows of classes here, of values with a row for every one."""
        return values[self.part.rows].clone()

    def rows_of_all(self, values: Tensor) -> Tensor:
        """The rows of all classes, from each process's own; on the CPU, for there may be too many for the device."""
        return values if self.peers.alone else self.peers.gather(values, self.part).cpu()

    def _of_classes_here(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Those features in the widest dtype, and which of the classes here they are of. Checks all."""
        self._check_shape(features)
        if not bool(features.isfinite().all()):
            raise ConfigurationError("features must be finite")
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            said = f"{labels.dtype} {tuple(labels.shape)}"
            raise ConfigurationError(f"labels must be {len(features)} integers, got {said}")
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise ConfigurationError(f"labels must lie in [0, {self.num_classes})")
        own = labels - self.part.first
        here = (own >= 0) & (own < len(self.means))
        return features[here].to(self.means.device, gaussian.exact_dtype(self.means)), own[here].to(self.means.device)

    def _check_shape(self, features: Tensor) -> None:
        if torch._C._get_tracing_state():  # shapes are tensors then, and a network gives what its mixture takes
            return
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ConfigurationError(f"features must be (n, {self.num_features}), got {tuple(features.shape)}")

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes} classes, {self.num_features} features, variance={self.variance}, prior={self.prior}"
        )


def _sums(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Of each class's rows (k, ...); those of a million must not lose digits, hence the rows' wide dtype."""
    return rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)


def _check(
    num_classes: int,
    num_features: int,
    variance: str,
    prior: str,
    floor: float,
    initial_scale: float | None,
    peers: Devices,
) -> None:
    check_count("num_classes", num_classes)
    check_count("num_features", num_features)
    if num_classes < peers.size:
        raise ConfigurationError(f"num_classes must be at least the {peers.size} processes, got {num_classes}")
    for name, value, known in (("variance", variance, Variance), ("prior", prior, Prior)):
        if value not in get_args(known):
            raise ConfigurationError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if not 0 < floor < 1:
        raise ConfigurationError(f"variance_floor must lie in (0, 1), got {floor}")
    if initial_scale is not None and not 0 < initial_scale < math.inf:
        raise ConfigurationError(f"initial_scale must be a finite number above 0, got {initial_scale}")


def check_count(name: str, value: object) -> None:
    """Raises ConfigurationError for what is no integer from one on."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigurationError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}")
