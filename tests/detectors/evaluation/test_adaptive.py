import copy
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detectors import Screener
from detectors.base import Evidence
from detectors.evaluation import adaptive
from detectors.evaluation.adaptive import ADAPTIVE, AdaptiveSpec, check_adaptive, run_adaptive
from detectors.evaluation.attacks import AttackError, run_attack
from detectors.evaluation.settings import Task
from detectors.evaluation.threat import BUDGET_TOLERANCE, perturbation_norm
from detectors.fusion import Fusion, Surprise
from detectors.likelihood import LikelihoodDetector
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from model.image_tensors import decode_image

EPS = {"linf": 0.1, "l2": 0.6}
LARGE_EPS = {"linf": 0.15, "l2": 0.6}
SEVEN = Path(__file__).parents[2] / "samples" / "seven.png"
WHITE = [name for name, spec in ADAPTIVE.items() if spec.white_box]
Attack = Callable[[str, str], float]
OUT_OF_REACH = 1e-6  # an eps at which no class falls, so that every image stays open


@pytest.fixture(scope="module")
def batch(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """64 test images with their labels."""
    test = load_splits(digits_checkpoint.config.data).test
    return to_unit(test.images[:64]), test.labels[:64]


@pytest.fixture
def asked(digits_screener: Screener) -> Iterator[list[int]]:
    """How many images each forward pass of the network is asked about."""
    counts: list[int] = []
    handle = digits_screener.network.register_forward_hook(lambda module, given, _: counts.append(len(given[0])))
    yield counts
    handle.remove()


def got_through(screener: Screener, images: Tensor, labels: Tensor, *, false_alarm_rate: float = 0.05) -> float:
    """Share of images whose class is wrong and that are not flagged."""
    verdicts = screener.screen(images)
    through = (verdicts.class_index != labels) & (verdicts.p_value > false_alarm_rate)
    return float(through.double().mean())


@pytest.fixture(scope="module")
def attack(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> Attack:
    """How much an attack of 20 steps gets through of 24 images at a large eps; each is run once."""

    @cache
    def through(name: str, norm: str) -> float:
        images, labels = (tensor[:24] for tensor in batch)
        found = run_adaptive(digits_screener, name, images, labels, eps=LARGE_EPS[norm], norm=norm, steps=20)
        return got_through(digits_screener, found, labels)

    return through


def ranks(screener: Screener, images: Tensor, labels: Tensor) -> Tensor:
    """Wrong before right, then by p-value, as one number."""
    verdicts = screener.screen(images)
    return 2 * (verdicts.class_index != labels).double() + verdicts.p_value.double()


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


def plain_gradients(screener: Screener, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether wrong, and unit gradients of L and g: a pass for each of the three."""

    def classifier(asked: Tensor) -> Tensor:
        log_joint = screener.network(asked).log_joint
        true = nn.functional.one_hot(labels, log_joint.shape[1]).bool()
        return log_joint.masked_fill(true, -torch.inf).logsumexp(1) - log_joint[true]

    def gradient(value: Callable[[Tensor], Tensor]) -> Tensor:
        asked = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(value(asked).sum(), asked)
        return found / found.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)

    wrong = (screener.screen(images).class_index != labels).view(-1, 1, 1, 1)
    return wrong, gradient(classifier), gradient(lambda asked: screener.surprises(screener.gather(asked)).sum(0))


def plain_direction(name: str, weight: float, wrong: Tensor, classifier: Tensor, suspicion: Tensor) -> Tensor:
    if name == "joint":
        return classifier - weight * suspicion
    return torch.where(wrong, -suspicion, classifier)


@pytest.mark.parametrize("name", ["joint", "selective-pgd"])
def test_an_ascent_is_what_separate_passes_make_of_it(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    """In l2, where rounding stays small: a sign does not flip. The best of every image after all steps."""
    (images, labels), eps, steps = (tensor[:16] for tensor in batch), 0.4, 4
    expected, rank = images.clone(), ranks(digits_screener, images, labels)
    for weight in ADAPTIVE[name].weights:
        current = images.clone()
        for step in range(steps + 1):
            found = ranks(digits_screener, current, labels)
            expected[found > rank], rank = current[found > rank], torch.maximum(rank, found)
            direction = plain_direction(name, weight, *plain_gradients(digits_screener, current, labels))
            size = min(eps, 5 * eps * (1 - step / steps) / (steps + 1))
            change = current + size * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - images
            length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            current = (images + change * (eps / length).clamp(max=1)).clamp(0, 1)
    assert bool((rank > 2).any())
    assert not bool((rank > 2.5).any())  # an image that is left alone would part from the plain way
    found = run_adaptive(digits_screener, name, images, labels, eps=eps, norm="l2", steps=steps)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", WHITE)
@pytest.mark.parametrize("draws", [1, 3])
def test_a_step_is_one_forward_pass_a_draw(
    name: str, draws: int, digits_screener: Screener, batch: tuple[Tensor, Tensor], asked: list[int]
) -> None:
    """Beside one of the clean images, and one of where an ascent ends."""
    images, labels = (tensor[:4] for tensor in batch)
    run_adaptive(digits_screener, name, images, labels, eps=OUT_OF_REACH, steps=5, draws=draws)
    ascents = len(ADAPTIVE[name].weights)
    assert asked == [4] * (1 + ascents * (5 * draws + 1))


@pytest.mark.parametrize(
    ("name", "backward"),
    [("joint", 2), ("joint-adam", 1), ("selective-pgd", 1), ("orthogonal-pgd", 2), ("feature-matching", 1)],
)
def test_a_step_is_a_backward_pass_or_two(
    name: str,
    backward: int,
    digits_screener: Screener,
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images, labels), grad, calls = (tensor[:4] for tensor in batch), torch.autograd.grad, list[int]()

    def counted(*given: object, **rest: object) -> tuple[Tensor, ...]:
        calls.append(1)
        return grad(*given, **rest)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    run_adaptive(digits_screener, name, images, labels, eps=OUT_OF_REACH, steps=5)
    assert len(calls) == 5 * backward * len(ADAPTIVE[name].weights)


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


def test_the_first_restart_runs_all_weights_and_later_ones_take_turns() -> None:
    joint, selective = ADAPTIVE["joint"], ADAPTIVE["selective-pgd"]
    first, *others = joint.weights
    assert [joint.weights_of(restart) for restart in range(6)] == [
        joint.weights,
        (first,),
        *((other,) for other in others),
        (first,),
    ]
    assert [selective.weights_of(restart) for restart in range(3)] == 3 * [(1.0,)]
    ratios = [later / earlier for earlier, later in pairwise(joint.weights)]
    assert min(ratios) == pytest.approx(max(ratios), rel=0.02)


@pytest.mark.parametrize("name", WHITE)
@pytest.mark.parametrize("restarts", [1, 4])
def test_images_stay_open_until_their_class_is_wrong_and_the_told_cost_is_the_real_one(
    name: str, restarts: int, digits_screener: Screener, batch: tuple[Tensor, Tensor], asked: list[int]
) -> None:
    images, labels = (tensor[:3] for tensor in batch)
    run_adaptive(digits_screener, name, images, labels, eps=OUT_OF_REACH, steps=5, restarts=restarts)
    ascents = len(ADAPTIVE[name].weights) + restarts - 1
    assert asked == [3] * (1 + 6 * ascents)
    task = Task(group="attack", name=name, knowledge="full", norm="linf", seed=0, eps=0.1, steps=5, restarts=restarts)
    assert task.cost == 1 + 5 * ascents


def test_what_is_convincing_is_left_alone(
    digits_screener: Screener, batch: tuple[Tensor, Tensor], asked: list[int]
) -> None:
    """Under wrong labels clean images are wrong, and many as likely as can be."""
    images, labels = batch[0], (batch[1] + 1) % 10
    convincing = ranks(digits_screener, images, labels) > 2.5
    assert 10 < int(convincing.sum()) < 60
    asked.clear()
    found = run_adaptive(digits_screener, "selective-pgd", images, labels, eps=0.1, steps=3, restarts=2)
    assert asked[:2] == [64, 64 - int(convincing.sum())]
    assert sorted(asked, reverse=True) == asked
    assert torch.equal(found[convincing], images[convincing])


@pytest.mark.parametrize(("name", "norm"), [("joint", "linf"), ("selective-pgd", "linf"), ("joint", "l2")])
def test_who_knows_the_detector_gets_through_more_often(
    name: str, norm: str, digits_screener: Screener, batch: tuple[Tensor, Tensor], attack: Attack
) -> None:
    """Than plain PGD of the same number of steps."""
    images, labels = (tensor[:24] for tensor in batch)
    plain_name = "pgd" if norm == "linf" else "pgd-l2"
    plain = run_attack(digits_screener.network, plain_name, images, labels, eps=LARGE_EPS[norm], steps=20)
    assert attack(name, norm) > got_through(digits_screener, plain, labels) + 0.15


def test_it_raises_what_plain_pgd_reaches_at_a_strict_threshold(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    """At an eps where the class falls anyway, at a false-alarm rate of 50 %."""
    images, labels = batch
    plain = run_attack(digits_screener.network, "pgd", images, labels, eps=0.25, steps=40)
    knowing = run_adaptive(digits_screener, "selective-pgd", images, labels, eps=0.25, steps=40)
    before, after = (got_through(digits_screener, found, labels, false_alarm_rate=0.5) for found in (plain, knowing))
    assert after > before + 0.3


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name not in ("feature-matching", "smooth-pgd")])
def test_every_attack_on_the_verdict_gets_many_through_at_a_large_eps(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor], attack: Attack
) -> None:
    assert attack(name, "linf") > got_through(digits_screener, *(tensor[:24] for tensor in batch)) + 0.15


def test_gradients_beat_queries(attack: Attack) -> None:
    """What two passes a step reach against ten."""
    assert attack("selective-pgd", "linf") >= attack("random-search", "linf") > 0


def test_adam_s_rule_makes_the_most_of_many_steps(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    """Signs of one size leave a residue; it brings through what a strict threshold would stop."""
    images, labels = batch
    strict = {}
    for name in ("selective-pgd", "joint-adam"):
        found = run_adaptive(digits_screener, name, images, labels, eps=1.0, norm="l2", steps=40)
        strict[name] = got_through(digits_screener, found, labels, false_alarm_rate=0.5)
    assert strict["joint-adam"] > strict["selective-pgd"] + 0.3


def test_adam_s_steps_do_not_shrink_with_their_number(
    digits_screener: Screener, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of each ascent, of the 1,000 that were asked for: 3 % of eps, or 0.5 % of it without the rule."""
    images, eps = torch.full_like(batch[0][:2], 0.5), 0.1
    moved: list[float] = []

    def confined(candidates: Tensor, clean: Tensor, **budget: object) -> Tensor:
        moved.append(float((candidates - clean).abs().max()) / eps)
        raise StopIteration

    monkeypatch.setattr(adaptive, "confine", confined)
    for name in ("joint-adam", "selective-pgd"):
        with pytest.raises(StopIteration):
            run_adaptive(digits_screener, name, images, batch[1][:2], eps=eps, steps=1_000)
    assert moved == pytest.approx([0.03, 5 / 1_001], rel=1e-3)


def test_smooth_steps_leave_less_residue_than_signs(shipped_screener: Screener) -> None:
    """On a seven of 28 x 28; on 8 x 8 there is hardly anything but high frequencies."""
    seven = decode_image(SEVEN.read_bytes(), shipped_screener.image_format).float().div(255).unsqueeze(0)
    residue = {}
    for name in ("selective-pgd", "smooth-pgd"):
        found = run_adaptive(shipped_screener, name, seven, torch.tensor([7]), eps=0.3, steps=20)
        verdicts = shipped_screener.screen(found)
        assert int(verdicts.class_index) != 7
        residue[name] = float(verdicts.evidence["residual"].score)
    assert residue["smooth-pgd"] < 0.5 * residue["selective-pgd"]


def test_feature_matching_deceives_the_likelihood_of_the_features(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    """Which is all it aims at: what looks at pixels or earlier layers sees it."""
    images, labels = (tensor[:24] for tensor in batch)
    found = run_adaptive(digits_screener, "feature-matching", images, labels, eps=0.25, steps=20)
    verdicts = digits_screener.screen(found)
    wrong = verdicts.class_index != labels
    assert float(wrong.double().mean()) > 0.9
    assert float((wrong & (verdicts.evidence["likelihood"].p_value > 0.05)).double().mean()) > 0.4


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "smooth-pgd"])  # 8 x 8 has no room for it
def test_restarts_never_lose_what_was_found(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[:32] for tensor in batch)
    one, three = (
        run_adaptive(digits_screener, name, images, labels, eps=0.1, steps=4, restarts=restarts)
        for restarts in (1, 3)
    )
    before, after = (ranks(digits_screener, found, labels) for found in (one, three))
    assert bool((after >= before).all())
    assert bool((after > before).any())


@pytest.mark.parametrize("name", ["selective-pgd", "orthogonal-pgd"])
def test_more_steps_are_not_weaker(name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:24] for tensor in batch)
    few, many = (run_adaptive(digits_screener, name, images, labels, eps=0.12, steps=steps) for steps in (5, 20))
    assert got_through(digits_screener, many, labels) > got_through(digits_screener, few, labels) + 0.2


class Loud(LikelihoodDetector):
    """The likelihood detector on another scale."""

    name = "loud"

    def forward(self, evidence: Evidence) -> Tensor:
        return 1e12 * super().forward(evidence)


def test_the_scale_of_a_score_does_not_matter(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:32] for tensor in batch)
    first, *others = digits_screener.fusion.names
    assert first == "likelihood"
    knots, tails = (digits_screener.fusion.surprise.get_buffer(name).clone() for name in ("knots", "tails"))
    knots[: len(digits_screener.labels)] *= 1e12
    tails[: len(digits_screener.labels)] *= 1e12
    loud = Screener(
        digits_screener.network,
        [Loud(), *(digits_screener.detectors[name] for name in others)],
        Fusion(("loud", *others), Surprise(knots, tails)),
        digits_screener.calibration,
        labels=digits_screener.labels,
        image_format=digits_screener.image_format,
        false_alarm_rate=0.05,
        name="loud",
    )
    for name in ("joint", "selective-pgd", "orthogonal-pgd"):
        through = [
            got_through(screener, run_adaptive(screener, name, images, labels, eps=0.15, steps=5), labels)
            for screener in (digits_screener, loud)
        ]
        assert through[1] == pytest.approx(through[0], abs=2 / 32)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("orthogonal", {"eps": 0.1}, "unknown adaptive attack 'orthogonal'; there are joint, joint-adam, "),
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
