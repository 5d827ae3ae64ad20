"""Which way an attack that knows the detector goes: images (m, c, h, w) -> ascent directions of the same shape.

L(x) = log sum_{j != y} p(x, j) - log p(x, y) is the classifier's loss; g(x) is the screener's suspicion. Gradients
are normalised per image: nothing ties the scale of g to that of L.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.evaluation.threat import AttackError
from detectors.screener import Screener


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What a direction depends on beside the images.

    labels (m,) the true classes; wrong (m,) whether the class is wrong now; weight of the suspicion; draws that
    a gradient is averaged over; rank, from 0, of the wrong class that features are led to.
    """

    screener: Screener
    labels: Int[Tensor, " m"]
    wrong: Bool[Tensor, " m"]
    weight: float
    draws: int
    rank: int

    def among(self, rows: Bool[Tensor, " m"]) -> "Moment":
        """The same for some of the images."""
        return Moment(
            screener=self.screener,
            labels=self.labels[rows],
            wrong=self.wrong[rows],
            weight=self.weight,
            draws=self.draws,
            rank=self.rank,
        )


Direction = Callable[[Moment, Tensor], Tensor]


def joint(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """grad L - weight * grad g (Carlini and Wagner 2017)."""
    return classifier_gradient(moment, images) - moment.weight * suspicion_gradient(moment, images)


def selective(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """grad L where the class is still right, -grad g where it is wrong (Bryniarski et al. 2021)."""
    direction = torch.zeros_like(images)
    for rows, gradient_of, sign in ((~moment.wrong, classifier_gradient, 1), (moment.wrong, suspicion_gradient, -1)):
        if bool(rows.any()):
            direction[rows] = sign * gradient_of(moment.among(rows), images[rows])
    return direction


def orthogonal(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """The same choice, each gradient without its part along the other (Bryniarski et al. 2021).

    With weight 0 grad L stays whole and goes on while evading. Where g is a likelihood, what is orthogonal to it
    stays in the class: the way to another class leads through less likely features first.
    """
    classifier, evasion = classifier_gradient(moment, images), -suspicion_gradient(moment, images)
    evading = unit(without_part_along(classifier, evasion))
    wrong = moment.wrong.view(-1, 1, 1, 1)
    if moment.weight == 0:
        return torch.where(wrong, classifier + evading, classifier)
    return torch.where(wrong, evading, without_part_along(evasion, classifier))


def feature_matching(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """-grad |f(x) - mu_j|^2, f the features and mu_j the mean of a likely wrong class (after Sabour et al. 2016)."""
    mixture = moment.screener.network.mixture
    rank = moment.rank % (mixture.num_classes - 1)

    def closeness(asked: Tensor) -> Tensor:
        features, log_joint = moment.screener.network(asked)
        wrong_classes = log_joint.detach().scatter(1, moment.labels.unsqueeze(1), -torch.inf)
        goal = mixture.means[wrong_classes.argsort(1, descending=True)[:, rank]]
        distances: Tensor = (features - goal).square().sum(1)
        return -distances

    return mean_gradient(closeness, images, draws=moment.draws)


def classifier_gradient(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """grad L, of unit length: the way to a wrong class."""

    def loss(asked: Tensor) -> Tensor:
        return margin_loss(moment.screener.network(asked).log_joint, moment.labels)

    return mean_gradient(loss, images, draws=moment.draws)


def suspicion_gradient(moment: Moment, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """grad g, of unit length: the way to a flag."""
    return mean_gradient(moment.screener.suspicion, images, draws=moment.draws)


def margin_loss(log_joint: Float[Tensor, "m k"], labels: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """log sum_{j != y} p(x, j) - log p(x, y) = log (1 - p(y | x)) / p(y | x), in nats.

    Its gradient has cross entropy's direction, but does not fade with the confidence.
    """
    true = labels.unsqueeze(1)
    return log_joint.scatter(1, true, -torch.inf).logsumexp(1) - log_joint.gather(1, true).squeeze(1)


def mean_gradient(
    objective: Callable[[Tensor], Tensor], images: Float[Tensor, "m c h w"], *, draws: int
) -> Float[Tensor, "m c h w"]:
    """Gradient of the objective averaged over draws, of unit length for each image; zero where it is no number.

    Raises AttackError for an objective that has none.
    """
    total = torch.zeros_like(images)
    for _ in range(draws):
        asked = images.detach().requires_grad_()
        values = objective(asked)
        if not values.requires_grad:
            raise AttackError("the screener's score has no gradient: attack it by random-search")
        total += torch.autograd.grad(values.sum(), asked)[0]
    return unit(total)


def unit(vectors: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """Each image's vector at length one, whatever its scale; zero stays zero, as does what is not finite."""
    finite = torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    scaled = finite / _positive(finite.abs().amax((1, 2, 3), keepdim=True))  # else squares overflow or vanish
    return scaled / _positive(scaled.square().sum((1, 2, 3), keepdim=True).sqrt())


def without_part_along(
    along: Float[Tensor, "m c h w"], vectors: Float[Tensor, "m c h w"]
) -> Float[Tensor, "m c h w"]:
    """v - (v . u / u . u) u for each image's v and u; v where u is zero."""
    share = (vectors * along).sum((1, 2, 3), keepdim=True) / _positive(along.square().sum((1, 2, 3), keepdim=True))
    return vectors - share * along


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))
