import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detectors import Screener
from detectors.evaluation import directions
from detectors.evaluation.attacks import AttackError
from detectors.evaluation.directions import Moment, margin_loss, unit, without_part_along
from detectors.evaluation.hunt import Look, look_at
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit


@pytest.fixture(scope="module")
def batch(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """20 test images with their labels, every third of them a wrong one."""
    test = load_splits(digits_checkpoint.config.data).test
    labels = test.labels[:20].clone()
    labels[::3] = (labels[::3] + 1) % 10
    return to_unit(test.images[:20]), labels


@pytest.fixture
def now(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> Callable[..., Moment]:
    """A moment of its own look; a direction frees its graph."""

    def make(*, weight: float = 1.0, draws: int = 1, rank: int = 0) -> Moment:
        look = look_at(digits_screener, *batch)
        assert 5 < int(look.wrong.sum()) < 15
        return Moment(screener=digits_screener, look=look, weight=weight, draws=draws, rank=rank)

    return make


@pytest.fixture(scope="module")
def plain(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Unit gradients of L and g by the book: image by image, a forward pass for each."""
    images, labels = batch

    def classifier(asked: Tensor, label: Tensor) -> Tensor:
        posterior = digits_screener.network(asked).log_joint.double().softmax(1)[0, label]
        return ((1 - posterior) / posterior).log()

    def alarm(asked: Tensor) -> Tensor:
        return digits_screener.surprises(digits_screener.gather(asked)).sum()

    def gradient(value: Callable[[Tensor, Tensor], Tensor], row: int) -> Tensor:
        asked = images[row : row + 1].clone().requires_grad_()
        (found,) = torch.autograd.grad(value(asked, labels[row]), asked)
        return found / found.norm()

    rows = range(len(images))
    return (
        torch.cat([gradient(classifier, row) for row in rows]),
        torch.cat([gradient(lambda asked, label: alarm(asked), row) for row in rows]),
    )


def project_out(vectors: Tensor, along: Tensor) -> Tensor:
    return vectors - (vectors * along).sum((1, 2, 3), keepdim=True) * along


@pytest.mark.parametrize("weight", [0.1, 1.6])
def test_joint_weighs_both_gradients(weight: float, now: Callable[..., Moment], plain: tuple[Tensor, Tensor]) -> None:
    classifier, suspicion = plain
    assert torch.allclose(directions.joint(now(weight=weight)), classifier - weight * suspicion, atol=1e-4)


def test_selective_pgd_follows_l_until_the_class_is_wrong_and_then_less_suspicion(
    now: Callable[..., Moment], plain: tuple[Tensor, Tensor]
) -> None:
    moment = now()
    expected = torch.where(moment.look.wrong.view(-1, 1, 1, 1), -plain[1], plain[0])
    assert torch.allclose(directions.selective(moment), expected, atol=1e-4)


def test_orthogonal_pgd_steps_orthogonally_by_state(now: Callable[..., Moment], plain: tuple[Tensor, Tensor]) -> None:
    (classifier, suspicion), moment, pushing = plain, now(), now(weight=0.0)
    wrong = moment.look.wrong.view(-1, 1, 1, 1)
    evading = unit(project_out(-suspicion, classifier))
    expected = torch.where(wrong, evading, project_out(classifier, suspicion))
    assert torch.allclose(directions.orthogonal(moment), expected, atol=1e-3)
    assert torch.allclose(
        directions.orthogonal(pushing), torch.where(wrong, classifier + evading, classifier), atol=1e-3
    )


def test_feature_matching_leads_to_another_class_s_mean(
    digits_screener: Screener, batch: tuple[Tensor, Tensor], now: Callable[..., Moment]
) -> None:
    (images, labels), means = batch, digits_screener.network.mixture.means.detach()
    for rank in (0, 1, 9):
        asked = images.clone().requires_grad_()
        features, log_joint, _ = digits_screener.network(asked)
        ranked = log_joint.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(1, descending=True)
        distances = torch.cdist(features, means).gather(1, ranked[:, rank % 9 : rank % 9 + 1])
        (expected,) = torch.autograd.grad(-distances.square().sum(), asked)
        assert torch.allclose(directions.feature_matching(now(rank=rank)), unit(expected), atol=1e-4)


def test_the_loss_is_cross_entropy_s_and_does_not_fade(now: Callable[..., Moment]) -> None:
    moment = now()
    look = moment.look
    cross_entropy = nn.functional.cross_entropy(look.evidence.log_joint.double(), look.labels, reduction="sum")
    (expected,) = torch.autograd.grad(cross_entropy, look.images, retain_graph=True)
    (found,) = moment.gradients(directions.loss)
    assert torch.allclose(found, unit(expected), atol=1e-3)
    log_joint = torch.tensor([[0.0, -400.0, -401.0]], requires_grad=True)
    sure = margin_loss(log_joint, torch.tensor([0]))
    assert sure.item() == pytest.approx(-400 + math.log1p(math.exp(-1)), rel=1e-5)
    (slope,) = torch.autograd.grad(sure.sum(), log_joint)
    assert slope[0].tolist() == pytest.approx([-1, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rel=1e-4)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_hinged_presses_on_only_until_another_class_leads_by_enough(
    weight: float, digits_screener: Screener, batch: tuple[Tensor, Tensor], now: Callable[..., Moment]
) -> None:
    """weight * L - log (1 + g) there, -log (1 + g) from then on; image by image."""
    found, led = directions.hinged(now(weight=weight)), []
    for row, (image, label) in enumerate(zip(*batch, strict=True)):
        asked = image.unsqueeze(0).clone().requires_grad_()
        evidence = digits_screener.gather(asked)
        posterior = evidence.log_joint.double().softmax(1)[0, label]
        lead = ((1 - posterior) / posterior).log()
        led.append(bool(lead > 1))
        calm = -(1 + digits_screener.surprises(evidence).sum()).log()
        (expected,) = torch.autograd.grad(calm if led[-1] else weight * lead + calm, asked)
        assert torch.allclose(found[row], unit(expected)[0], atol=1e-4)
    assert 5 < sum(led) < 15


@pytest.mark.parametrize("name", ["joint", "hinged", "selective", "orthogonal", "feature_matching"])
def test_draws_of_a_screener_that_is_not_random_change_nothing(name: str, now: Callable[..., Moment]) -> None:
    one, three = (getattr(directions, name)(now(draws=draws)) for draws in (1, 3))
    assert torch.allclose(one, three, atol=1e-4)


def test_gradients_are_averaged_over_draws_before_they_are_normalised(now: Callable[..., Moment]) -> None:
    generator = torch.Generator().manual_seed(0)
    slopes: list[Tensor] = []

    def score(look: Look) -> Tensor:
        slopes.append(10.0 ** len(slopes) * torch.randn(look.images.shape, generator=generator))
        return (slopes[-1] * look.images).sum((1, 2, 3))

    (found,) = now(draws=3).gradients(score)
    assert len(slopes) == 3
    assert torch.allclose(found, unit(torch.stack(slopes).mean(0)), atol=1e-6)


def test_each_draw_is_a_pass_of_its_own_and_the_first_is_the_look(now: Callable[..., Moment]) -> None:
    moment, looks = now(draws=3), list[Look]()

    def score(look: Look) -> Tensor:
        looks.append(look)
        return look.suspicion

    moment.gradients(score)
    assert [look is moment.look for look in looks] == [True, False, False]
    assert len({id(look.suspicion) for look in looks}) == 3


@pytest.mark.parametrize("name", ["joint", "selective", "orthogonal"])
def test_a_score_without_a_gradient_is_named(
    name: str, digits_screener: Screener, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the classifier's loss has one."""
    surprises = digits_screener.fusion.surprises
    monkeypatch.setattr(digits_screener.fusion, "surprises", lambda *given: surprises(*given).detach())
    moment = Moment(screener=digits_screener, look=look_at(digits_screener, *batch), weight=1.0, draws=1, rank=0)
    with pytest.raises(AttackError, match="has no gradient: attack it by random-search"):
        getattr(directions, name)(moment)


def test_gradients_are_of_unit_length_whatever_the_scale() -> None:
    vectors = torch.randn((4, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e-3, 1.0, 1e30):
        assert torch.allclose(unit(scale * vectors), unit(vectors), atol=1e-6)
    assert torch.allclose(unit(vectors).flatten(1).norm(dim=1), torch.ones(4))
    assert torch.equal(unit(torch.zeros_like(vectors)), torch.zeros_like(vectors))
    assert torch.equal(unit(torch.full_like(vectors, torch.nan)), torch.zeros_like(vectors))


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
