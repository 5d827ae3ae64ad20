"""Kernel densities: the bandwidth against scikit-learn's cross validation, classes apart, data too small."""

import math

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KernelDensity

from detectors.gathering import CHUNK, gather_rows
from detectors.kernel_density import GRID, KernelDensityDetector, choose_bandwidth, leave_one_out
from model.errors import CalibrationError
from tests.detectors.synthetic import NUM_FEATURES, clusters, generator, joined, make_evidence, make_network, normal

NETWORK = make_network()
COUNTS = [15, 12, 9]


def fit(counts: list[int], seed: int = 0) -> KernelDensityDetector:
    return KernelDensityDetector.fit(clusters(NETWORK, counts), generator=generator(seed))


def cross_validated(features: torch.Tensor, bandwidth: float) -> float:
    scores = cross_val_score(KernelDensity(bandwidth=bandwidth), features.double().numpy(), cv=LeaveOneOut())
    return float(scores.sum())


def test_leave_one_out_is_scikit_learns() -> None:
    features, bandwidths = normal(20, NUM_FEATURES), [0.3, 1.0, 2.5]
    found = leave_one_out(features.double(), torch.tensor(bandwidths).double())
    constant = 20 * (math.log(19) + 0.5 * NUM_FEATURES * math.log(2 * math.pi))
    assert np.allclose(found - constant, [cross_validated(features, bandwidth) for bandwidth in bandwidths])


def test_the_bandwidth_is_the_likeliest_of_the_grid() -> None:
    rows = gather_rows(clusters(NETWORK, COUNTS))
    found = [rows.features[rows.labels == index] for index in range(rows.num_classes)]
    spread = torch.cat([of - of.mean(0) for of in found]).square().mean().sqrt().item()
    likelihoods = [sum(cross_validated(of, spread * factor) for of in found) for factor in GRID]
    best = int(np.argmax(likelihoods))
    assert 0 < best < len(GRID) - 1  # so the grid is wide enough
    assert choose_bandwidth(rows).item() == pytest.approx(spread * GRID[best], rel=1e-5)


def test_at_most_five_hundred_rows_a_class_drawn_by_the_generator() -> None:
    first, again, other = (fit([700, 600, 20], seed) for seed in (0, 0, 1))
    assert torch.bincount(first.get_buffer("labels")).tolist() == [500, 500, 20]
    assert torch.equal(first.get_buffer("reference"), again.get_buffer("reference"))
    assert not torch.equal(first.get_buffer("reference"), other.get_buffer("reference"))


def test_only_the_predicted_class_has_a_say() -> None:
    few, many = clusters(NETWORK, COUNTS), clusters(NETWORK, COUNTS)
    evidence, labels = joined(many)
    shifted = evidence.features + 5 * (labels == 2).unsqueeze(1)
    detectors = [
        KernelDensityDetector.fit(of, generator=generator())
        for of in (few, [(make_evidence(NETWORK, shifted), labels)])
    ]
    judged = make_evidence(NETWORK, NETWORK.mixture.means + 0.1)
    assert judged.class_index.tolist() == [0, 1, 2]
    before, after = (detector(judged) for detector in detectors)
    assert torch.allclose(before[:2], after[:2], rtol=1e-4)
    assert after[2] > before[2] + 10


def test_classes_of_other_sizes_weigh_the_same() -> None:
    """The density is a mean: twice the same rows are no denser."""
    batches = clusters(NETWORK, COUNTS)
    evidence, labels = joined(batches)
    keep = torch.cat([torch.arange(len(labels)), torch.nonzero(labels == 0).squeeze(1)])
    bandwidth = torch.tensor(0.7)
    once = KernelDensityDetector(evidence.features, labels, bandwidth)
    twice = KernelDensityDetector(evidence.features[keep], labels[keep], bandwidth)
    judged = make_evidence(NETWORK, NETWORK.mixture.means)
    assert torch.allclose(once(judged), twice(judged), rtol=1e-5)


@pytest.mark.parametrize(("counts", "message"), [([5, 0, 5], "class 1 has no"), ([1, 1, 1], "two clean images")])
def test_too_little_data_is_refused(counts: list[int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fit(counts)


def test_equal_rows_leave_a_bandwidth() -> None:
    evidence = make_evidence(NETWORK, NETWORK.mixture.means.repeat(4, 1))
    detector = KernelDensityDetector.fit([(evidence, torch.arange(3).repeat(4))], generator=generator())
    scores = detector(make_evidence(NETWORK, normal(5, NUM_FEATURES)))
    assert bool(scores.isfinite().all())


def test_far_away_scores_are_finite_and_lead_back() -> None:
    features = (100 * normal(CHUNK + 1, NUM_FEATURES)).requires_grad_()
    scores = fit(COUNTS)(make_evidence(NETWORK, features))
    scores.sum().backward()
    assert scores.shape == (CHUNK + 1,)
    assert bool(scores.isfinite().all())
    assert features.grad is not None
    assert bool((features.grad.mul(features).sum(1) > 0).all())
