"""Which way an attack that knows the detector goes: a moment -> ascent directions (m, c, h, w).

L(x) = log sum_{j != y} p(x, j) - log p(x, y) is the classifier's loss; g(x) is what the detectors say. Gradients
are normalised per image: nothing ties the scale of g to that of L.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detectors.evaluation.hunt import Look, look_at
from detectors.evaluation.threat import AttackError
from detectors.screener import Screener

ENOUGH = 1.0  # nats by which the wrong classes lead, from where on `hinged` evades alone
Objective = Callable[[Look], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where an ascent is, and how it is set.

    look: the pass that judged the images, whose graph gradients are taken from; weight of the suspicion; draws
    that a gradient is averaged over; rank, from 0, of the wrong class that features are led to.
    """

    screener: Screener
    look: Look
    weight: float
    draws: int
    rank: int

    def gradients(self, *objectives: Objective) -> list[Float[Tensor, "m c h w"]]:
        """Of each objective (m,) summed: the mean over draws, as `unit` makes it. Only once: it frees the graph.

        The first draw is the look itself, each further one a pass of its own.

        Raises AttackError for an objective that has no gradient.
        """
        totals = [torch.zeros_like(self.look.images) for _ in objectives]
        for draw in range(self.draws):
            look = look_at(self.screener, self.look.images, self.look.labels) if draw else self.look
            for total, gradient in zip(totals, _gradients(look, objectives), strict=True):
                total += gradient
        return [unit(total) for total in totals]


def _gradients(look: Look, objectives: tuple[Objective, ...]) -> Iterator[Tensor]:
    values = [objective(look).sum() for objective in objectives]
    for place, value in enumerate(values, start=1):
        yield torch.autograd.grad(value, look.images, retain_graph=place < len(values))[0]


Direction = Callable[[Moment], Tensor]


def joint(moment: Moment) -> Float[Tensor, "m c h w"]:
    """grad L - weight * grad g (Carlini and Wagner 2017)."""
    classifier, suspicious = moment.gradients(loss, suspicion)
    return classifier - moment.weight * suspicious


def selective(moment: Moment) -> Float[Tensor, "m c h w"]:
    """grad L where the class is still right, -grad g where it is wrong (Bryniarski et al. 2021).

    A score depends on its own image alone, so one backward pass of the sum gives each image the gradient it needs.
    """
    (gradient,) = moment.gradients(lambda look: torch.where(moment.look.wrong, -suspicion(look), loss(look)))
    return gradient


def smooth(moment: Moment) -> Float[Tensor, "m c h w"]:
    """The selective direction, blurred: what a detector of noise-like residue sees least of.

    After Guo et al. 2019, "Low Frequency Adversarial Perturbation", arXiv 1809.08758. The binomial filter of three
    taps leaves nothing of what alternates from pixel to pixel.
    """
    direction = selective(moment)
    taps = torch.tensor([0.25, 0.5, 0.25]).to(direction)
    channels = direction.shape[1]
    kernel = torch.outer(taps, taps).expand(channels, 1, -1, -1)
    padded = nn.functional.pad(direction, (1, 1, 1, 1), mode="replicate")
    return nn.functional.conv2d(padded, kernel, groups=channels)


def orthogonal(moment: Moment) -> Float[Tensor, "m c h w"]:
    """The same choice, each gradient without its part along the other (Bryniarski et al. 2021).

    With weight 0 grad L stays whole and goes on while evading. Where g is a likelihood, what is orthogonal to it
    stays in the class: the way to another class leads through less likely features first.
    """
    classifier, suspicious = moment.gradients(loss, suspicion)
    evading = unit(without_part_along(classifier, -suspicious))
    wrong = moment.look.wrong.view(-1, 1, 1, 1)
    if moment.weight == 0:
        return torch.where(wrong, classifier + evading, classifier)
    return torch.where(wrong, evading, without_part_along(suspicious, classifier))


def hinged(moment: Moment) -> Float[Tensor, "m c h w"]:
    """grad (weight * min(L, ENOUGH) - log (1 + g)): both in nats, so that neither is drowned and none must be scaled.

    After Carlini and Wagner 2017: once a wrong class leads by enough, all effort goes into evading.
    """
    (gradient,) = moment.gradients(
        lambda look: moment.weight * loss(look).clamp(max=ENOUGH) - suspicion(look).log1p()
    )
    return gradient


def feature_matching(moment: Moment) -> Float[Tensor, "m c h w"]:
    """-grad |f(x) - mu_j|^2, f the features and mu_j the mean of a likely wrong class (after Sabour et al. 2016)."""
    mixture = moment.screener.network.mixture
    rank = moment.rank % (mixture.num_classes - 1)

    def closeness(look: Look) -> Tensor:
        wrong_classes = look.evidence.log_joint.detach().scatter(1, look.labels.unsqueeze(1), -torch.inf)
        goal = mixture.means[wrong_classes.argsort(1, descending=True)[:, rank]]
        distances: Tensor = (look.evidence.features - goal).square().sum(1)
        return _led_back(-distances)

    (gradient,) = moment.gradients(closeness)
    return gradient


def loss(look: Look) -> Float[Tensor, " m"]:
    """L in nats: it rises towards a wrong class."""
    return _led_back(margin_loss(look.evidence.log_joint, look.labels))


def suspicion(look: Look) -> Float[Tensor, " m"]:
    """g: it rises towards a flag. The sum of the detectors' surprises, where the verdict takes their logsumexp.

    The gradient of the verdict itself is that of the loudest detector, and calming one wakes another: it brings far
    fewer images through.
    """
    return _led_back(look.alarm)


def margin_loss(log_joint: Float[Tensor, "m k"], labels: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """log sum_{j != y} p(x, j) - log p(x, y) = log (1 - p(y | x)) / p(y | x), in nats.

    Its gradient has cross entropy's direction, but does not fade with the confidence.
    """
    true = labels.unsqueeze(1)
    return log_joint.scatter(1, true, -torch.inf).logsumexp(1) - log_joint.gather(1, true).squeeze(1)


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


def signed(direction: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """The steepest ascent within an linf ball: every pixel by as much."""
    return direction.sign()


def whole(direction: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """The direction as it is, for a rule that has set its size."""
    return direction


def proportional(direction: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """The direction itself, its largest pixel at one: less steep than its sign, and without a sign's edges."""
    return direction / _positive(direction.abs().amax((1, 2, 3), keepdim=True))


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))


def _led_back(values: Tensor) -> Tensor:
    """A choice between objectives would hide that one of them leads nowhere."""
    if not values.requires_grad:
        raise AttackError("the screener's score has no gradient: attack it by random-search")
    return values
