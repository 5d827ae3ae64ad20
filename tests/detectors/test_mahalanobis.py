"""Mahalanobis: what must not change a distance, and data that leave no covariance."""

import pytest
import torch
from torch import Tensor

from detectors.base import Evidence
from detectors.mahalanobis import MahalanobisDetector, whitening_of
from tests.detectors.synthetic import Batch, clusters, generator, joined, make_evidence, make_network, normal

NETWORK = make_network()
BATCHES = clusters(NETWORK, [50, 40, 30])


def fit(batches: list[Batch]) -> MahalanobisDetector:
    return MahalanobisDetector.fit(batches, generator=generator())


@pytest.fixture
def judged() -> Evidence:
    return joined(clusters(NETWORK, [10, 10, 10], seed=9))[0]


def test_turning_scaling_and_shifting_a_layer_changes_nothing(judged: Evidence) -> None:
    turn = 7 * torch.linalg.qr(normal(4, 4)).Q

    def changed(evidence: Evidence) -> Evidence:
        return make_evidence(NETWORK, evidence.features, evidence.taps[0] @ turn + 100)

    moved = fit([(changed(evidence), labels) for evidence, labels in BATCHES])
    assert torch.allclose(moved(changed(judged)), fit(BATCHES)(judged), rtol=1e-3)


def test_training_rows_are_as_far_from_their_classes_as_there_are_channels() -> None:
    evidence, labels = joined(BATCHES)
    for layer, outputs in zip(fit(BATCHES).layers, (evidence.taps[0], evidence.features), strict=True):
        whitened = (outputs - layer.get_buffer("centre")) @ layer.get_buffer("whitening").T
        distances = (whitened - layer.get_buffer("means")[labels]).square().sum(1)
        assert distances.mean() == pytest.approx(outputs.shape[1], rel=0.02)  # the trace of Sigma^-1 Sigma


def test_the_nearest_class_counts_whatever_is_predicted(judged: Evidence) -> None:
    detector, means = fit(BATCHES), NETWORK.mixture.means
    only_features = fit([(make_evidence(NETWORK, of.features), labels) for of, labels in BATCHES])
    assert bool((only_features(make_evidence(NETWORK, means)) < 1).all())
    assert bool((detector(judged) >= only_features(make_evidence(NETWORK, judged.features))).all())


def test_a_class_without_rows_has_no_mean_to_be_near() -> None:
    detector = fit(clusters(NETWORK, [50, 0, 30]))
    assert [len(layer.get_buffer("means")) for layer in detector.layers] == [2, 2]
    kept, missing = (make_evidence(NETWORK, NETWORK.mixture.means[[at]], torch.zeros(1, 4)) for at in (0, 1))
    assert detector(missing) > detector(kept)


@pytest.mark.parametrize(
    "covariance",
    [torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1e8, 0.0, 1e-8]))],
    ids=["none", "one direction", "dead channels"],
)
def test_any_covariance_has_a_whitening(covariance: Tensor) -> None:
    whitening = whitening_of(covariance.double())
    assert bool(whitening.isfinite().all())
    ridged = covariance.double() + 1e-3 * max(covariance.diagonal().mean().item(), 2**-23) * torch.eye(3)
    assert torch.allclose(whitening @ ridged @ whitening.T, torch.eye(3).double(), atol=1e-6)


def test_a_single_image_carries_a_fit(judged: Evidence) -> None:
    (evidence, labels), _ = clusters(NETWORK, [1, 1, 0])
    scores = fit([(evidence, labels)])(judged)
    assert bool(scores.isfinite().all())
    assert fit([(evidence, labels)])(evidence) == pytest.approx(0, abs=1e-6)


def test_no_gradient_breaks_at_a_class_mean() -> None:
    (evidence, labels), _ = clusters(NETWORK, [1, 1, 0])
    detector = fit([(evidence, labels)])
    features = evidence.features.clone().requires_grad_()
    detector(make_evidence(NETWORK, features, evidence.taps[0])).sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())
