"""Softmax and what is added to it: hand-computed values, special cases, and the papers' own rules."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import ConfigurationError
from model.losses import (
    CenterLoss,
    DistillationLoss,
    FeatureIncayLoss,
    L2SoftmaxLoss,
    LabelSmoothingLoss,
    NoisySoftmaxLoss,
    SoftmaxLoss,
)
from model.losses.base import LinearLoss, RivalLoss
from model.losses.center import centre_steps
from model.losses.l2_softmax import l2_scale

K, D = 3, 2


def draw(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, D, generator=generator), torch.randint(K, (count,), generator=generator)


def with_weights(criterion: LinearLoss) -> LinearLoss:
    """w = (1, 0), (0, 1), (-1, -1) and no bias."""
    with torch.no_grad():
        criterion.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        criterion.classifier.bias.zero_()
    return criterion


def test_softmax_by_hand() -> None:
    # x = (2, 0): f = (2, 0, -2); L = -ln(e^2 / (e^2 + 1 + e^-2))
    loss = with_weights(SoftmaxLoss(K, D))(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).total
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-4)))


def test_softmax_is_cross_entropy_of_the_linear_layer() -> None:
    criterion, (features, labels) = SoftmaxLoss(K, D), draw()
    expected = F.cross_entropy(criterion.classifier(features), labels)
    torch.testing.assert_close(criterion(features, labels).total, expected, rtol=0, atol=0)


def test_smoothing_spreads_the_label() -> None:
    # the mean of -log p over all classes takes the share `smoothing`
    criterion, (features, labels) = LabelSmoothingLoss(K, D, smoothing=0.3), draw()
    log_p = criterion.logits(features).log_softmax(1)
    expected = -0.7 * log_p.gather(1, labels[:, None]).mean() - 0.3 * log_p.mean()
    torch.testing.assert_close(criterion(features, labels).total, expected)


@pytest.mark.parametrize(
    "criterion",
    [
        LabelSmoothingLoss(K, D, smoothing=0.0),
        CenterLoss(K, D, weight=0.0),
        FeatureIncayLoss(K, D, weight=0.0),
    ],
    ids=lambda criterion: criterion.name,
)
def test_without_its_addition_it_is_softmax(criterion: LinearLoss) -> None:
    features, labels = draw()
    torch.testing.assert_close(
        criterion(features, labels).total, F.cross_entropy(criterion.classifier(features), labels)
    )


def test_noise_lowers_the_true_class_alone_and_in_training_alone() -> None:
    criterion, (features, labels) = NoisySoftmaxLoss(K, D, noise=0.5), draw()
    plain = F.cross_entropy(features @ criterion.weight.T, labels)
    torch.testing.assert_close(criterion.eval()(features, labels).total, plain)
    torch.manual_seed(0)
    noisy = criterion.train()(features, labels).total
    torch.manual_seed(0)
    strength = torch.randn(len(features), 1).abs()
    logits = features @ criterion.weight.T
    cosines = F.normalize(features) @ F.normalize(criterion.weight).T
    lowered = logits - 0.5 * strength * features.norm(dim=1)[:, None] * criterion.weight.norm(dim=1) * (1 - cosines)
    expected = torch.where(F.one_hot(labels, K).bool(), lowered, logits)
    torch.testing.assert_close(noisy, F.cross_entropy(expected, labels))


def test_without_noise_it_is_softmax_without_bias() -> None:
    criterion, (features, labels) = NoisySoftmaxLoss(K, D, noise=0.0), draw()
    expected = F.cross_entropy(features @ criterion.weight.T, labels)
    torch.testing.assert_close(criterion(features, labels).total, expected)


def taught(logits: Tensor, **options: float) -> DistillationLoss:
    criterion = DistillationLoss(K, D, teacher=lambda images: logits, **options)
    criterion.see(torch.zeros(len(logits), 1, 2, 2))
    return criterion


def test_a_teacher_without_weight_teaches_nothing() -> None:
    features, labels = draw()
    criterion = taught(torch.randn(len(labels), K), weight=0.0)
    expected = F.cross_entropy(criterion.classifier(features), labels)
    torch.testing.assert_close(criterion(features, labels).total, expected)


def test_a_teacher_who_agrees_leaves_no_softened_loss() -> None:
    features, labels = draw()
    criterion = DistillationLoss(K, D, teacher=lambda images: criterion.logits(features), weight=1.0)
    criterion.see(torch.zeros(len(labels), 1, 2, 2))
    assert criterion(features, labels).total.item() == pytest.approx(0, abs=1e-6)


def test_distillation_is_the_divergence_written_out() -> None:
    features, labels = draw()
    told = torch.randn(len(labels), K, generator=torch.Generator().manual_seed(5))
    criterion = taught(told, weight=0.6, temperature=3.0)
    teacher, student = (told / 3).softmax(1), (criterion.logits(features) / 3).softmax(1)
    divergence = (teacher * (teacher / student).log()).sum(1).mean()
    expected = 0.4 * F.cross_entropy(criterion.logits(features), labels) + 0.6 * 9 * divergence
    torch.testing.assert_close(criterion(features, labels).total, expected)


def test_distillation_needs_the_batchs_images_each_time() -> None:
    features, labels = draw()
    criterion = taught(torch.randn(len(labels), K))
    criterion(features, labels)
    with pytest.raises(ConfigurationError, match=r"call see\(images\) before the loss"):
        criterion(features, labels)
    with pytest.raises(ConfigurationError, match=r"the teacher knows \(4,\) classes, not 3"):
        taught(torch.randn(len(labels), 4))


def test_centres_move_by_their_own_rule() -> None:
    # class 0: x = (1, 0), (3, 0), c = 0, delta = (0 - 1 - 3) / 3; class 1: x = (0, 2), delta = -2 / 2; class 2: none
    criterion = CenterLoss(K, D, centre_rate=0.5)
    criterion(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(criterion.centres, torch.tensor([[2 / 3, 0.0], [0.0, 0.5], [0.0, 0.0]]))


def test_the_rule_is_the_gradient_over_one_more_than_the_count() -> None:
    features, labels = draw()
    centres = torch.randn(K, D, requires_grad=True)
    ((features - centres[labels]).square().sum() / 2).backward()
    counts = torch.bincount(labels, minlength=K)[:, None]
    assert centres.grad is not None
    torch.testing.assert_close(centre_steps(centres.detach(), features, labels), centres.grad / (1 + counts))


@pytest.mark.parametrize("overflow", [math.inf, math.nan, 1e30])
def test_the_rule_leaves_out_a_feature_that_overflowed(overflow: float) -> None:
    features, labels = draw()
    centres = torch.randn(K, D)
    spoilt = torch.cat([features, torch.tensor([[0.5, overflow]])]), torch.cat([labels, labels[:1]])
    torch.testing.assert_close(centre_steps(centres, *spoilt), centre_steps(centres, features, labels))


def test_centres_that_a_graph_has_read_stay_as_they_were() -> None:
    """A compiled loss keeps them for its backward pass, where nothing finds that they have changed since."""
    criterion = CenterLoss(K, D)
    centres = criterion.centres
    criterion(*draw())
    assert bool((centres == 0).all())
    assert bool((criterion.centres != 0).any())


def test_center_loss_draws_features_to_their_centre() -> None:
    # dL/dx_i = weight (x_i - c_z) / n, beside softmax's
    criterion, (features, labels) = CenterLoss(K, D, weight=0.2), draw()
    criterion.centres.normal_()
    centres = criterion.centres.clone()
    features.requires_grad_()
    (whole,) = torch.autograd.grad(criterion(features, labels).total, features)
    (softmax,) = torch.autograd.grad(F.cross_entropy(criterion.logits(features), labels), features)
    torch.testing.assert_close(whole - softmax, 0.2 * (features.detach() - centres[labels]) / len(labels))


@pytest.mark.parametrize("mode", ["evaluation", "no gradient"])
def test_centres_rest_outside_training(mode: str) -> None:
    criterion, (features, labels) = CenterLoss(K, D), draw()
    criterion.train(mode != "evaluation")
    with torch.set_grad_enabled(mode == "evaluation"):
        criterion(features, labels)
    assert bool((criterion.centres == 0).all())


def test_incay_counts_rightly_classified_features_alone() -> None:
    # x_1 = (2, 0) is class 0, right: 1 / (4 + 1); x_2 = (0, 3) is taken for class 1, its label 2: nothing
    criterion = with_weights(FeatureIncayLoss(K, D, weight=0.5, epsilon=1.0))
    terms = criterion(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 2]))
    assert terms.likelihood.item() == pytest.approx(1 / 5 / 2)
    assert terms.total.item() == pytest.approx(terms.classification.item() + 0.5 / 10)


def test_incay_lengthens_features() -> None:
    criterion = with_weights(FeatureIncayLoss(K, D))
    features = torch.tensor([[2.0, 0.0]], requires_grad=True)
    criterion(features, torch.tensor([0])).likelihood.backward()
    # d/dx 1 / (|x|^2 + 1) = -2 x / (|x|^2 + 1)^2
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.tensor([[-4 / 25, 0.0]]))


def test_l2_softmax_knows_directions_alone() -> None:
    criterion, (features, labels) = L2SoftmaxLoss(K, D, scale=5.0), draw()
    lengths = torch.linspace(0.5, 40, len(labels))[:, None]
    torch.testing.assert_close(criterion(features, labels).total, criterion(lengths * features, labels).total)
    expected = F.cross_entropy(criterion.classifier(5 * features / features.norm(dim=1, keepdim=True)), labels)
    torch.testing.assert_close(criterion(features, labels).total, expected)


def test_the_least_length_of_l2_softmax() -> None:
    # ln(0.9 * 8 / 0.1) = ln 72 for ten classes
    assert l2_scale(10, 0.9) == pytest.approx(math.log(72))
    assert l2_scale(2, 0.9) == 1.0
    assert L2SoftmaxLoss(10, 4).scale == pytest.approx(math.log(0.99 / 0.01 * 8))


def test_a_posterior_comes_of_the_logits() -> None:
    criterion: RivalLoss = SoftmaxLoss(K, D)
    features, labels = draw()
    posterior = criterion.logits(features).softmax(1)
    expected = -posterior.gather(1, labels[:, None]).log().mean()
    torch.testing.assert_close(criterion(features, labels).total, expected)
