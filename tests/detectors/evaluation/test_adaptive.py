import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from detectors import Screener
from detectors.base import Evidence
from detectors.calibration import ConformalCalibration
from detectors.evaluation import directions
from detectors.evaluation.adaptive import ADAPTIVE, AdaptiveSpec, check_adaptive, run_adaptive
from detectors.evaluation.attacks import AttackError, run_attack
from detectors.evaluation.directions import Moment, mean_gradient, unit, without_part_along
from detectors.evaluation.hunt import Hunt
from detectors.evaluation.random_search import window_share
from detectors.evaluation.threat import BUDGET_TOLERANCE, perturbation_norm
from detectors.likelihood import LikelihoodDetector
from model.checkpoint import Checkpoint
from model.data import load_splits, to_unit

EPS = {"linf": 0.1, "l2": 0.6}


@pytest.fixture(scope="module")
def batch(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """64 test images with their labels."""
    test = load_splits(digits_checkpoint.config.data).test
    return to_unit(test.images[:64]), test.labels[:64]


def got_through(screener: Screener, images: Tensor, labels: Tensor, *, false_alarm_rate: float = 0.05) -> float:
    """Share of images whose class is wrong and that are not flagged."""
    verdicts = screener.screen(images)
    through = (verdicts.class_index != labels) & (verdicts.p_value > false_alarm_rate)
    return float(through.double().mean())


def ranks(screener: Screener, images: Tensor, labels: Tensor) -> Tensor:
    """Wrong before right, then by p-value, as one number."""
    verdicts = screener.screen(images)
    return 2 * (verdicts.class_index != labels).double() + verdicts.p_value.double()


def moment(screener: Screener, images: Tensor, labels: Tensor, **rest: object) -> Moment:
    wrong = screener.screen(images).class_index != labels
    given = {"weight": 1.0, "draws": 1, "rank": 0, "wrong": wrong} | rest
    return Moment(screener=screener, labels=labels, **given)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spec", ADAPTIVE.values(), ids=lambda spec: spec.name)
def test_every_attack_keeps_the_contract(
    spec: AdaptiveSpec, norm: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:6] for tensor in batch)
    given, names = images.clone(), labels.clone()
    screener = copy.deepcopy(digits_screener)
    screener.requires_grad_(True).train()
    screener.network.embedding.eval().requires_grad_(False)
    modes = [module.training for module in screener.modules()]
    needs = [parameter.requires_grad for parameter in screener.parameters()]
    state = torch.get_rng_state()

    def attack() -> Tensor:
        return run_adaptive(
            screener, spec.name, images, labels, eps=EPS[norm], norm=norm, steps=3, restarts=2, seed=3
        )

    found = attack()
    assert (found.shape, found.dtype, found.requires_grad) == (images.shape, torch.float32, False)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(perturbation_norm(found - images, norm).max()) <= EPS[norm] + BUDGET_TOLERANCE
    assert torch.equal(images, given)
    assert torch.equal(labels, names)
    assert [module.training for module in screener.modules()] == modes
    assert [parameter.requires_grad for parameter in screener.parameters()] == needs
    assert all(parameter.grad is None for parameter in screener.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, attack())
    assert bool((ranks(digits_screener, found, labels) >= ranks(digits_screener, images, labels)).all())


@pytest.mark.parametrize("name", ["joint", "selective-pgd"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.2), ("l2", 0.6), ("l2", 1.5)])
def test_who_knows_the_detector_gets_through_at_least_as_often(
    name: str, norm: str, eps: float, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    """As plain PGD of the same number of steps; one image of 64 may go the other way by chance."""
    images, labels = batch
    plain = run_attack(
        digits_screener.network, "pgd" if norm == "linf" else "pgd-l2", images, labels, eps=eps, steps=40
    )
    knowing = run_adaptive(digits_screener, name, images, labels, eps=eps, norm=norm, steps=40)
    assert got_through(digits_screener, knowing, labels) >= got_through(digits_screener, plain, labels) - 1 / 64


def test_it_raises_what_plain_pgd_reaches_at_a_strict_threshold(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    """At an eps where the class falls anyway, at a false-alarm rate of 50 %."""
    images, labels = batch
    plain = run_attack(digits_screener.network, "pgd-l2", images, labels, eps=1.5)
    knowing = run_adaptive(digits_screener, "selective-pgd", images, labels, eps=1.5, norm="l2")
    before, after = (got_through(digits_screener, found, labels, false_alarm_rate=0.5) for found in (plain, knowing))
    assert after > before + 0.3


@pytest.mark.parametrize("name", ADAPTIVE)
def test_every_attack_gets_most_through_at_a_large_eps(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:24] for tensor in batch)
    found = run_adaptive(digits_screener, name, images, labels, eps=0.25, steps=20)
    assert got_through(digits_screener, images, labels) < 0.1
    assert got_through(digits_screener, found, labels) > 0.6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_restarts_never_lose_what_was_found(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:16] for tensor in batch)
    one, three = (
        run_adaptive(digits_screener, name, images, labels, eps=0.1, steps=4, restarts=restarts)
        for restarts in (1, 3)
    )
    before, after = (ranks(digits_screener, found, labels) for found in (one, three))
    assert bool((after >= before).all())
    assert bool((after > before).any())


@pytest.mark.parametrize("name", ["selective-pgd", "orthogonal-pgd"])
def test_more_steps_are_not_weaker(name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    """40 against 5 on 64 images, where two may go the other way by chance."""
    images, labels = batch
    few, many = (run_adaptive(digits_screener, name, images, labels, eps=0.12, steps=steps) for steps in (5, 40))
    assert got_through(digits_screener, many, labels) >= got_through(digits_screener, few, labels) - 2 / 64


def test_gradients_beat_queries(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    white, black = (
        run_adaptive(digits_screener, name, images, labels, eps=0.6, norm="l2", steps=20)
        for name in ("selective-pgd", "random-search")
    )
    assert got_through(digits_screener, white, labels) > got_through(digits_screener, black, labels)
    assert ADAPTIVE["selective-pgd"].white_box
    assert not ADAPTIVE["random-search"].white_box


def test_random_search_follows_no_gradient(
    digits_screener: Screener, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (tensor[:8] for tensor in batch)

    def refuse(*given: object, **rest: object) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    run_adaptive(digits_screener, "random-search", images, labels, eps=0.1, steps=2)
    with pytest.raises(AssertionError, match="a gradient was taken"):
        run_adaptive(digits_screener, "selective-pgd", images, labels, eps=0.1, steps=2)


def test_random_search_s_windows_shrink_as_the_paper_has_it() -> None:
    """Table of Andriushchenko et al. 2020, section 3.1: halved at 10, 50, 200, ... of 10,000 iterations."""
    shares = [window_share(iteration / 10_000) for iteration in (0, 10, 11, 50, 51, 200, 201, 8001, 9999)]
    assert shares == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.8 / 2**9, 0.8 / 2**9]


def test_projected_gradients_are_orthogonal() -> None:
    known = without_part_along(
        torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2), torch.tensor([3.0, 4.0, 0.0, -2.0]).view(1, 1, 2, 2)
    )
    assert known.flatten().tolist() == [0.0, 4.0, 0.0, -2.0]
    along, vectors = torch.randn((2, 50, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    rest = without_part_along(along, vectors)
    cosine = nn.functional.cosine_similarity(rest.flatten(1), along.flatten(1))
    assert float(cosine.abs().max()) < 1e-5
    removed = vectors - rest
    assert float(nn.functional.cosine_similarity(removed.flatten(1), along.flatten(1)).abs().min()) > 0.999
    assert torch.equal(without_part_along(torch.zeros_like(vectors), vectors), vectors)


def test_orthogonal_pgd_steps_orthogonally_by_state(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:20] for tensor in batch)
    wrong = torch.arange(20) % 3 == 0
    whole = moment(digits_screener, images, labels, wrong=wrong)
    classifier = directions.classifier_gradient(whole, images)
    suspicion = directions.suspicion_gradient(whole, images)
    found = directions.orthogonal(whole, images)
    along_classifier, along_suspicion = ((found * other).sum((1, 2, 3)) for other in (classifier, suspicion))
    assert float(along_classifier[wrong].abs().max()) < 1e-5
    assert bool((along_suspicion[wrong] < 0).all())
    assert float(along_suspicion[~wrong].abs().max()) < 1e-5
    assert bool((along_classifier[~wrong] > 0).all())
    pushing = directions.orthogonal(moment(digits_screener, images, labels, wrong=wrong, weight=0.0), images)
    assert torch.equal(pushing[~wrong], classifier[~wrong])
    assert torch.allclose(pushing[wrong], (classifier + found)[wrong], atol=1e-6)


def test_selective_pgd_chooses_by_state(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:20] for tensor in batch)
    for wrong in (torch.arange(20) % 3 == 0, torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)):
        now = moment(digits_screener, images, labels, wrong=wrong)
        found = directions.selective(now, images)
        assert torch.allclose(found[~wrong], directions.classifier_gradient(now, images)[~wrong], atol=1e-5)
        assert torch.allclose(found[wrong], -directions.suspicion_gradient(now, images)[wrong], atol=1e-5)


def test_the_joint_direction_weighs_both(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:8] for tensor in batch)
    now = moment(digits_screener, images, labels, weight=0.25)
    expected = directions.classifier_gradient(now, images) - 0.25 * directions.suspicion_gradient(now, images)
    assert torch.equal(directions.joint(now, images), expected)
    weights = ADAPTIVE["joint"].weights
    ratios = [later / earlier for earlier, later in pairwise(weights)]
    assert min(ratios) == pytest.approx(max(ratios), rel=0.02)


def test_the_classifier_s_gradient_is_cross_entropy_s_and_does_not_fade(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:16] for tensor in batch)
    asked = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(digits_screener.network(asked).log_joint.double(), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, asked)
    found = directions.classifier_gradient(moment(digits_screener, images, labels), images)
    assert torch.allclose(found, unit(expected), atol=1e-3)
    log_joint = torch.tensor([[0.0, -400.0, -401.0]], requires_grad=True)
    sure = directions.margin_loss(log_joint, torch.tensor([0]))
    assert sure.item() == pytest.approx(-400 + math.log1p(math.exp(-1)), rel=1e-5)
    (slope,) = torch.autograd.grad(sure.sum(), log_joint)
    assert slope[0].tolist() == pytest.approx([-1, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rel=1e-4)


def test_gradients_are_of_unit_length_whatever_the_scale() -> None:
    vectors = torch.randn((4, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e-3, 1.0, 1e30):
        assert torch.allclose(unit(scale * vectors), unit(vectors), atol=1e-6)
    assert torch.allclose(unit(vectors).flatten(1).norm(dim=1), torch.ones(4))
    assert torch.equal(unit(torch.zeros_like(vectors)), torch.zeros_like(vectors))
    assert torch.equal(unit(torch.full_like(vectors, torch.nan)), torch.zeros_like(vectors))


def test_gradients_are_averaged_over_draws() -> None:
    """Of a random score: one draw tells little, four hundred tell the slope."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.zeros((1, 1, 4, 4))
    slope[..., 0, 0] = 1

    def score(asked: Tensor) -> Tensor:
        return ((slope + torch.randn(asked.shape, generator=generator)) * asked).sum((1, 2, 3))

    images = torch.rand((1, 1, 4, 4), generator=generator)
    one, many = (mean_gradient(score, images, draws=draws) for draws in (1, 400))
    assert float((many * slope).sum()) > 0.95
    assert float((one * slope).sum()) < 0.9


def test_a_score_without_a_gradient_is_named() -> None:
    with pytest.raises(AttackError, match="has no gradient: attack it by random-search"):
        mean_gradient(lambda asked: asked.detach().sum((1, 2, 3)), torch.rand(2, 1, 4, 4), draws=1)


def test_feature_matching_leads_to_another_class_s_mean(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:12] for tensor in batch)
    means = digits_screener.network.mixture.means.detach()
    for rank in (0, 1, 9):
        now = moment(digits_screener, images, labels, rank=rank)
        moved = images + 0.01 * directions.feature_matching(now, images)
        with torch.no_grad():
            before, after = (torch.cdist(digits_screener.network(some).features, means) for some in (images, moved))
        others = before.scatter(1, labels.unsqueeze(1), torch.inf)
        goal = others.argsort(1)[:, rank % 9].unsqueeze(1)
        assert bool((after.gather(1, goal) < before.gather(1, goal)).all())


def test_the_hunt_keeps_the_best_and_only_leaves_what_is_convincing(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:30] for tensor in batch)
    hunt = Hunt(digits_screener, images, labels, enough=0.5)
    assert torch.equal(hunt.best, images)
    generator = torch.Generator().manual_seed(0)
    best, rank = images.clone(), ranks(digits_screener, images, labels)
    rows = torch.arange(30)
    for attempt in range(6):
        candidates = run_attack(digits_screener.network, "pgd", images, labels, eps=0.05 * (attempt + 1), steps=3)
        candidates = (candidates + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        hunt.judge(rows, candidates)
        found = ranks(digits_screener, candidates, labels)
        best[found > rank] = candidates[found > rank]
        rank = torch.maximum(rank, found)
    assert torch.equal(hunt.best, best)
    assert torch.equal(hunt.open_rows(), (rank <= 2.5).nonzero().squeeze(1))
    assert 0 < len(hunt.open_rows()) < 30


class Loud(LikelihoodDetector):
    """The likelihood detector on another scale."""

    name = "loud"

    def forward(self, evidence: Evidence) -> Tensor:
        return 1e12 * super().forward(evidence)


def test_the_scale_of_the_suspicion_does_not_matter(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:32] for tensor in batch)
    quiet = digits_screener.calibrations[digits_screener.decider]
    loud = Screener(
        digits_screener.network,
        [Loud()],
        [ConformalCalibration(1e12 * quiet.get_buffer("scores"), quiet.get_buffer("counts"))],
        decider="loud",
        labels=digits_screener.labels,
        image_format=digits_screener.image_format,
        false_alarm_rate=0.05,
        name="loud",
    )
    for name in ("joint", "selective-pgd", "orthogonal-pgd"):
        through = [
            got_through(screener, run_adaptive(screener, name, images, labels, eps=0.15, steps=10), labels)
            for screener in (digits_screener, loud)
        ]
        assert through[1] == pytest.approx(through[0], abs=2 / 32)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("orthogonal", {"eps": 0.1}, "unknown adaptive attack 'orthogonal'; there are joint, selective-pgd, "),
        ("joint", {"eps": 2.0}, r"eps of joint must lie in \(0, 1\]"),
        ("joint", {"eps": 0.0}, "above 0 and finite"),
        ("joint", {"eps": 0.1, "norm": "none"}, "joint needs a budget: norm linf or l2"),
        ("joint", {"eps": 0.1, "steps": 0}, "at least 1 step"),
        ("joint", {"eps": 0.1, "restarts": 0}, "restarts"),
        ("joint", {"eps": 0.1, "draws": 0}, "draws"),
    ],
)
def test_what_cannot_be_run_is_refused(
    name: str, given: dict[str, float], said: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:2] for tensor in batch)
    with pytest.raises(AttackError, match=said):
        run_adaptive(digits_screener, name, images, labels, **given)


def test_a_batch_that_does_not_fit_is_refused(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:2] for tensor in batch)
    for given, names, said in ((images * 2, labels, r"not in \[0, 1\]"), (images, labels + 10, "0 to 9")):
        with pytest.raises(AttackError, match=said):
            run_adaptive(digits_screener, "joint", given, names, eps=0.1)
    with pytest.raises(AttackError, match="needs eps"):
        check_adaptive("joint", None)
