"""Nearest neighbours: lengths do not count, k follows the size of the set."""

import pytest
import torch

from detectors.knn import KNNDetector
from tests.detectors.synthetic import clusters, generator, make_evidence, make_network, normal

NETWORK = make_network()


def fit(counts: list[int], seed: int = 0) -> KNNDetector:
    return KNNDetector.fit(clusters(NETWORK, counts), generator=generator(seed))


@pytest.mark.parametrize(
    ("counts", "num_neighbours"), [([1, 0, 0], 1), ([40, 40, 40], 4), ([500, 500, 500], 50), ([900, 900, 900], 50)]
)
def test_neighbours_are_a_tenth_of_a_class_and_fifty_at_most(counts: list[int], num_neighbours: int) -> None:
    assert int(fit(counts).get_buffer("num_neighbours")) == num_neighbours


def test_at_most_five_thousand_references_drawn_by_the_generator() -> None:
    first, again, other = (fit([1700, 1700, 1700], seed).get_buffer("reference") for seed in (0, 0, 1))
    assert first.shape == (5_000, 6)
    assert torch.equal(first, again)
    assert not torch.equal(first.sort(0).values, other.sort(0).values)
    assert torch.allclose(first.norm(dim=1), torch.ones(5_000))


def test_the_length_of_features_does_not_count() -> None:
    detector, features = fit([60, 60, 60]), normal(20, 6)
    scores = detector(make_evidence(NETWORK, features))
    assert torch.allclose(detector(make_evidence(NETWORK, 50 * features)), scores, atol=1e-5)
    assert bool((scores <= 2).all())


def test_directions_between_the_classes_are_further() -> None:
    detector, means = fit([60, 60, 60]), NETWORK.mixture.means
    at_means, between = (detector(make_evidence(NETWORK, of)) for of in (means, -means.sum(0, keepdim=True)))
    assert between > at_means.max()


def test_features_of_no_length_have_a_score_and_a_gradient() -> None:
    features = torch.zeros(1, 6, requires_grad=True)
    scores = fit([60, 60, 60])(make_evidence(NETWORK, features))
    scores.sum().backward()
    assert scores.item() == pytest.approx(1)
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())
