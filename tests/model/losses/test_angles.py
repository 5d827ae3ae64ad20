"""Losses of angles: the papers' functions, bounds and special cases, and the library's own losses."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as library
from torch import Tensor

from model.errors import ConfigurationError
from model.losses import (
    ArcFaceLoss,
    ASoftmaxLoss,
    COCOLoss,
    CosFaceLoss,
    CosineNormalisationLoss,
    LSoftmaxLoss,
    NormFaceLoss,
)
from model.losses.angular_margin import AngularMarginLoss
from model.losses.cosine import CosineLoss, coco_scale
from model.losses.weights import least_scale

K, D = 5, 3


def draw(count: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, D, generator=generator), torch.randint(K, (count,), generator=generator)


def weights(criterion: AngularMarginLoss | CosineLoss) -> Tensor:
    found: Tensor = criterion.rule.W.T
    return found


def cosines(criterion: AngularMarginLoss | CosineLoss, features: Tensor) -> Tensor:
    return F.normalize(features) @ F.normalize(weights(criterion)).T


def psi(angles: Tensor, margin: int) -> Tensor:
    """(-1)^j cos(m theta) - 2 j on [j pi / m, (j + 1) pi / m], as the papers write it."""
    j = (angles * margin / math.pi).floor().clamp(max=margin - 1)
    return (1 - 2 * (j % 2)) * (margin * angles).cos() - 2 * j


def margined(criterion: AngularMarginLoss, angle: Tensor) -> Tensor:
    criterion.rule.cast_types(angle.dtype, angle.device)
    found: Tensor = criterion.rule.modify_cosine_of_target_classes(angle.cos())
    return found


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [LSoftmaxLoss, ASoftmaxLoss])
def test_psi_is_the_papers_and_falls_all_the_way(kind: type[LSoftmaxLoss | ASoftmaxLoss], margin: int) -> None:
    angles = torch.linspace(1e-4, math.pi - 1e-4, 2001, dtype=torch.float64)
    found = margined(kind(K, D, margin=margin), angles)
    torch.testing.assert_close(found, psi(angles, margin), rtol=1e-9, atol=1e-9)
    assert bool((found.diff() < 0).all())
    assert found[0].item() == pytest.approx(1, abs=1e-6)
    assert found[-1].item() == pytest.approx(1 - 2 * margin, abs=1e-6)
    assert bool((found <= angles.cos() + 1e-12).all())


def written_out(criterion: AngularMarginLoss, features: Tensor, labels: Tensor, own: Any, scales: Tensor) -> Tensor:
    angles = cosines(criterion, features).clamp(-1, 1).acos()
    logits = torch.where(F.one_hot(labels, K).bool(), own(angles), angles.cos()) * scales
    return F.cross_entropy(logits, labels)


def test_l_softmax_written_out() -> None:
    criterion, (features, labels) = LSoftmaxLoss(K, D, margin=3), draw()
    criterion.step = 10**9  # the margin is wholly there
    lengths = features.norm(dim=1, keepdim=True) * weights(criterion).norm(dim=1)
    expected = written_out(criterion, features, labels, lambda angles: psi(angles, 3), lengths)
    torch.testing.assert_close(criterion(features, labels).total, expected, rtol=1e-4, atol=1e-5)


def test_a_softmax_written_out() -> None:
    criterion, (features, labels) = ASoftmaxLoss(K, D, margin=4, annealing=0.0), draw()
    criterion.step = 10**9
    lengths = features.norm(dim=1, keepdim=True)
    expected = written_out(criterion, features, labels, lambda angles: psi(angles, 4), lengths)
    torch.testing.assert_close(criterion(features, labels).total, expected, rtol=1e-4, atol=1e-5)


def test_a_margin_of_one_is_softmax_without_bias() -> None:
    criterion, (features, labels) = LSoftmaxLoss(K, D, margin=1), draw()
    expected = F.cross_entropy(features @ weights(criterion).T, labels)
    torch.testing.assert_close(criterion(features, labels).total, expected)


def test_the_margin_comes_in_over_the_steps() -> None:
    criterion = ASoftmaxLoss(K, D, annealing=5.0, decay=0.1)
    assert criterion.margin_share == pytest.approx(1 / 1001)
    criterion.step = 990
    assert criterion.margin_share == pytest.approx(1 / 11)
    criterion.step = 10**6
    assert criterion.margin_share == pytest.approx(1 / 6)
    assert CosFaceLoss(K, D).margin_share == 1.0


@pytest.mark.parametrize("kind", [LSoftmaxLoss, ASoftmaxLoss])
def test_decay_says_how_fast_the_margin_comes(kind: type[LSoftmaxLoss | ASoftmaxLoss]) -> None:
    for decay in (0.12, 3.0):
        criterion = kind(K, D, annealing=0.0, decay=decay)
        criterion.step = round(999 / decay)
        assert criterion.margin_share == pytest.approx(0.5)
    with pytest.raises(ConfigurationError, match="decay must be a finite number of zero or more"):
        kind(K, D, decay=-1.0)


def test_the_annealed_loss_lies_between_plain_and_margined() -> None:
    criterion, (features, labels) = LSoftmaxLoss(K, D, margin=4), draw()
    losses = []
    for step in (0, 100, 1000, 10**9):
        criterion.step = step
        losses.append(criterion(features, labels).total.item())
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_cosface_written_out() -> None:
    criterion, (features, labels) = CosFaceLoss(K, D, margin=0.2, scale=7.0), draw()
    logits = 7 * (cosines(criterion, features) - 0.2 * F.one_hot(labels, K))
    torch.testing.assert_close(criterion(features, labels).total, F.cross_entropy(logits, labels))


def test_arcface_written_out() -> None:
    criterion, (features, labels) = ArcFaceLoss(K, D, margin=0.3, scale=7.0), draw()
    angles = cosines(criterion, features).acos()
    own = torch.where(angles <= math.pi - 0.3, (angles + 0.3).cos(), angles.cos() - 0.3 * math.sin(0.3))
    logits = 7 * torch.where(F.one_hot(labels, K).bool(), own, angles.cos())
    torch.testing.assert_close(criterion(features, labels).total, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("criterion", [CosFaceLoss(K, D, margin=0.0), ArcFaceLoss(K, D, margin=0.0)])
def test_without_margin_they_are_normface(criterion: AngularMarginLoss) -> None:
    features, labels = draw()
    normface = NormFaceLoss(K, D)
    normface.rule.W.data = criterion.rule.W.data.clone()
    torch.testing.assert_close(criterion(features, labels).total, normface(features, labels).total)


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (CosFaceLoss(K, D, margin=0.3, scale=9.0), library.CosFaceLoss(K, D, margin=0.3, scale=9.0)),
        (ArcFaceLoss(K, D, margin=0.4, scale=9.0), library.ArcFaceLoss(K, D, margin=math.degrees(0.4), scale=9.0)),
        (NormFaceLoss(K, D, scale=9.0), library.NormalizedSoftmaxLoss(K, D, temperature=1 / 9)),
    ],
    ids=["cosface", "arcface", "normface"],
)
def test_they_are_the_librarys_losses(criterion: AngularMarginLoss | CosineLoss, kind: Any) -> None:
    features, labels = draw()
    kind.W.data = criterion.rule.W.data.clone()
    torch.testing.assert_close(criterion(features, labels).total, kind(features, labels))


def test_only_directions_count() -> None:
    features, labels = draw()
    lengths = torch.linspace(0.1, 30, len(labels))[:, None]
    for criterion in (CosFaceLoss(K, D), ArcFaceLoss(K, D), NormFaceLoss(K, D), COCOLoss(K, D)):
        torch.testing.assert_close(criterion(features, labels).total, criterion(lengths * features, labels).total)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 2000), st.floats(0.6, 0.9999))
def test_at_the_least_scale_a_centre_of_the_simplex_has_the_posterior_asked(count: int, probability: float) -> None:
    # k unit vectors as far apart as can be have cosines -1 / (k - 1)
    scale = least_scale(count, probability)
    posterior = 1 / (1 + (count - 1) * math.exp(-scale * count / (count - 1)))
    assert posterior == pytest.approx(probability, rel=1e-9)


def test_cosfaces_bound_by_hand() -> None:
    # 9/10 ln(9 * 0.9 / 0.1) = 0.9 ln 81
    assert least_scale(10, 0.9) == pytest.approx(0.9 * math.log(81))
    assert CosFaceLoss(10, 4).scale == pytest.approx(0.9 * math.log(9 * 999))


@pytest.mark.parametrize(("count", "probability"), [(1, 0.9), (10, 0.0), (10, 1.0), (10, 0.05)])
def test_bounds_that_do_not_exist_are_refused(count: int, probability: float) -> None:
    with pytest.raises(ConfigurationError, match=r"probability|classes"):
        least_scale(count, probability)


def test_bare_cosines_are_never_sure() -> None:
    # the least loss of K classes, features on their weights, the weights a simplex: ln(1 + (K - 1) e^(-K / (K - 1)))
    criterion = CosineNormalisationLoss(2, 2)
    criterion.rule.W.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    loss = criterion(torch.tensor([[9.0, 0.0], [-4.0, 0.0]]), torch.tensor([0, 1])).total
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_cocos_scale_bounds_its_loss() -> None:
    # opposite centroids at scale alpha leave ln(1 + (k - 1) e^(-2 alpha)) = epsilon
    for count, epsilon in ((2, 1e-4), (10, 1e-4), (1000, 0.5)):
        alpha = coco_scale(count, epsilon)
        assert math.log1p((count - 1) * math.exp(-2 * alpha)) == pytest.approx(epsilon)
    with pytest.raises(ConfigurationError, match="epsilon must be below ln 10"):
        coco_scale(10, 3.0)


def test_a_feature_on_its_weights_has_a_finite_gradient() -> None:
    """acos has none at 1: two-dimensional features of a trained network lie there."""
    for criterion in (ArcFaceLoss(2, 2), CosFaceLoss(2, 2), LSoftmaxLoss(2, 2), ASoftmaxLoss(2, 2)):
        criterion.rule.W.data = torch.eye(2)
        features = torch.tensor([[3.0, 0.0], [0.0, -2.0]], requires_grad=True)
        criterion(features, torch.tensor([0, 1])).total.backward()
        assert features.grad is not None
        assert bool(features.grad.isfinite().all())
