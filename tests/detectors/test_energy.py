"""Energy: what classes share leaves the logits, nothing else does."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from detectors.energy import EnergyDetector
from model.network import Network
from tests.detectors.synthetic import NUM_CLASSES, NUM_FEATURES, make_evidence, make_network, normal


def network_with(raw_log_variances: torch.Tensor) -> Network:
    columns = raw_log_variances.shape[1]
    network = make_network("isotropic" if columns == 1 else "diagonal")
    network.mixture.raw_log_variances.data = raw_log_variances
    return network


def variances_of(network: Network) -> np.ndarray:
    log_variances = network.mixture.log_variances
    assert log_variances is not None
    return np.broadcast_to(log_variances.exp().double().numpy(), (NUM_CLASSES, NUM_FEATURES))


@pytest.mark.parametrize("columns", [1, NUM_FEATURES])
def test_equal_variances_leave_a_linear_classifier(columns: int) -> None:
    network = network_with(normal(1, columns).expand(NUM_CLASSES, columns).clone())
    features, means = normal(20, NUM_FEATURES, seed=3) * 4, network.mixture.means.double().numpy()
    weight = means / variances_of(network)
    half_log_determinant = 0.5 * np.log(variances_of(network)[0]).sum()
    bias = network.mixture.log_priors.numpy() - 0.5 * (means * weight).sum(1) - half_log_determinant
    expected = -logsumexp(features.double().numpy() @ weight.T + bias, axis=1)
    assert np.allclose(EnergyDetector()(make_evidence(network, features)).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [1, NUM_FEATURES])
def test_other_variances_leave_what_differs_from_their_mean_precision(columns: int) -> None:
    network = network_with(normal(NUM_CLASSES, columns))
    features = normal(20, NUM_FEATURES, seed=3)
    precision = (1 / variances_of(network)).mean(0)
    shared = -0.5 * np.square(features.double().numpy()) @ precision - 0.5 * NUM_FEATURES * np.log(2 * np.pi)
    log_joint = network.mixture(features).double().numpy()
    expected = -logsumexp(log_joint - shared[:, None], axis=1)
    assert np.allclose(EnergyDetector()(make_evidence(network, features)).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_longer_features_of_a_class_have_less_energy() -> None:
    network = make_network()
    near, far = network.mixture.means[:1], 2 * network.mixture.means[:1]
    assert EnergyDetector()(make_evidence(network, far)) < EnergyDetector()(make_evidence(network, near))
