"""Losses of pairs, triplets and quadruplets: by hand, entry by entry, and against the library's."""

import itertools

import pytest
import torch
from pytorch_metric_learning import distances, losses
from torch import Tensor

from model.losses import ContrastiveLoss, QuadrupletLoss, TripletLoss
from model.losses.pairs import PairLoss

K, D = 4, 2


def draw(count: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return 2 * torch.randn(count, D, generator=generator), torch.randint(K, (count,), generator=generator)


def test_contrastive_by_hand() -> None:
    # x = 0, 3, 1 in one dimension, classes 0, 0, 1; margin 2: the pair of class 0 gives 9 / 2;
    # |0 - 1| = 1 gives (2 - 1)^2 / 2, |3 - 1| = 2 nothing: a mean of 1 / 4
    criterion = ContrastiveLoss(2, 1, margin=2.0)
    loss = criterion(torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([0, 0, 1])).total
    assert loss.item() == pytest.approx(4.5 + 0.25)


def test_triplets_by_hand() -> None:
    # a = 0, p = 1, n = 2; margin 4: a, p: 1 - 4 + 4 = 1; p, a: 1 - 1 + 4 = 4: a mean of 2.5
    criterion = TripletLoss(2, 1, margin=4.0)
    loss = criterion(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])).total
    assert loss.item() == pytest.approx(2.5)


def test_triplets_entry_by_entry() -> None:
    features, labels = draw()
    found = []
    for a, p, n in itertools.permutations(range(len(labels)), 3):
        if labels[a] == labels[p] != labels[n]:
            near, far = ((features[a] - features[other]).square().sum() for other in (p, n))
            found.append(float((near - far + 1.5).clamp_min(0)))
    expected = sum(found) / sum(value > 0 for value in found)
    assert TripletLoss(K, D, margin=1.5)(features, labels).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [ContrastiveLoss, TripletLoss, QuadrupletLoss])
def test_features_far_from_the_origin_keep_their_digits(kind: type[PairLoss]) -> None:
    features, labels = draw(40)
    far = features + 1000
    criterion = kind(K, D)
    exact = kind(K, D).double()
    torch.testing.assert_close(criterion.compare(far, labels), exact.compare(far.double(), labels).float())
    criterion.means += 1000
    one_by_one = torch.cat([criterion.logits(row) for row in far.split(1)])
    torch.testing.assert_close(criterion.logits(far), one_by_one)


def test_triplets_are_the_librarys() -> None:
    features, labels = draw()
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    expected = losses.TripletMarginLoss(margin=0.7, distance=squared)(features, labels)
    torch.testing.assert_close(TripletLoss(K, D, margin=0.7)(features, labels).total, expected)


def test_quadruplets_entry_by_entry() -> None:
    features, labels = draw()
    squares = (features[:, None] - features).square().sum(2)
    everyone = range(len(labels))
    triplets, quadruplets = [], []
    for a, p in itertools.permutations(everyone, 2):
        if labels[a] != labels[p]:
            continue
        triplets += [squares[a, p] - squares[a, n] + 4.0 for n in everyone if labels[n] != labels[a]]
        quadruplets += [
            squares[a, p] - squares[n, m] + 2.0
            for n, m in itertools.combinations(everyone, 2)
            if len({int(labels[a]), int(labels[n]), int(labels[m])}) == 3
        ]
    expected = sum(mean_above_zero(values) for values in (triplets, quadruplets))
    assert QuadrupletLoss(K, D)(features, labels).total.item() == pytest.approx(expected, rel=1e-5)


def mean_above_zero(values: list[Tensor]) -> float:
    above = [float(value) for value in values if value > 0]
    assert 0 < len(above) < len(values)
    return sum(above) / len(above)


def test_two_classes_have_triplets_but_no_quadruplets() -> None:
    features, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])
    # a, p: 1 - 4 + 4; p, a: 1 - 1 + 4
    assert QuadrupletLoss(2, 1)(features, labels).total.item() == pytest.approx(2.5)


@pytest.mark.parametrize("kind", [ContrastiveLoss, TripletLoss, QuadrupletLoss])
def test_a_batch_without_any_pair_of_a_class_has_a_gradient(
    kind: type[ContrastiveLoss | TripletLoss | QuadrupletLoss],
) -> None:
    features = torch.randn(K, D, requires_grad=True)
    loss = kind(K, D)(features, torch.arange(K)).total
    loss.backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())
    assert loss.item() == 0 or kind is ContrastiveLoss


@pytest.mark.parametrize("kind", [ContrastiveLoss, TripletLoss, QuadrupletLoss])
def test_classes_far_apart_have_no_loss(kind: type[ContrastiveLoss | TripletLoss | QuadrupletLoss]) -> None:
    labels = torch.arange(8) % K
    centres = 100 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert kind(K, D)(centres[labels], labels).total.item() == 0


def test_the_nearest_running_mean_classifies() -> None:
    # means after one batch: half of the sum over one more than the count
    criterion = ContrastiveLoss(2, 1)
    criterion(torch.tensor([[4.0], [-4.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(criterion.means, torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(criterion.logits(torch.tensor([[3.0]])), torch.tensor([[-2.0, -8.0]]))
