"""The layers detector against scikit-learn's covariance and a written-out sum."""

from dataclasses import replace

import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from detectors import CalibrationError
from detectors.base import Evidence, gather_evidence
from detectors.evidence_batches import EvidenceBatches
from detectors.layers import RIDGE, LayersDetector
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import ImageSet, to_unit
from model.network import Network


@pytest.fixture(scope="module")
def network(digits_checkpoint: Checkpoint) -> Network:
    return digits_checkpoint.build_network().requires_grad_(False)


@pytest.fixture(scope="module")
def train(digits_checkpoint: Checkpoint) -> ImageSet:
    return load_splits(digits_checkpoint.config.data).train


@pytest.fixture(scope="module")
def detector(network: Network, train: ImageSet) -> LayersDetector:
    return LayersDetector.fit(EvidenceBatches(network, train, torch.device("cpu")), generator=torch.Generator())


@pytest.fixture(scope="module")
def seen(network: Network, train: ImageSet) -> Evidence:
    with torch.no_grad():
        return gather_evidence(network, to_unit(train.images))


def written_out(outputs: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Half of scikit-learn's squared Mahalanobis distance to the class asked for."""
    means = torch.stack([outputs[labels == index].mean(0) for index in range(10)]).double()
    covariance = EmpiricalCovariance(assume_centered=True).fit((outputs - means[labels]).numpy())
    scatter = torch.from_numpy(covariance.covariance_)
    ridge = RIDGE * scatter.diagonal().mean() * torch.eye(len(scatter)).double()
    difference = outputs.double() - means[asked]
    return 0.5 * (difference * torch.linalg.solve(scatter + ridge, difference.T).T).sum(1)


def test_there_is_a_layer_for_each_tap_and_one_for_the_features(detector: LayersDetector, seen: Evidence) -> None:
    assert len(detector.layers) == len(seen.taps) + 1 == 4
    assert [layer.means.shape[1] for layer in detector.layers] == [8, 16, 32, 16]


def test_distances_are_those_of_scikit_learn(detector: LayersDetector, seen: Evidence, train: ImageSet) -> None:
    for layer, outputs in zip(detector.layers, [*seen.taps, seen.features], strict=True):
        expected = written_out(outputs, train.labels, seen.class_index)
        found = layer.distances(outputs, seen.class_index)
        assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_score_is_the_sum_of_standardised_distances(
    detector: LayersDetector, seen: Evidence, train: ImageSet
) -> None:
    expected = torch.zeros(len(train), dtype=torch.float64)
    for outputs in [*seen.taps, seen.features]:
        own = written_out(outputs, train.labels, train.labels)
        expected += (written_out(outputs, train.labels, seen.class_index) - own.mean()) / own.std()
    assert torch.allclose(detector(seen).double(), expected, rtol=1e-3, atol=2e-3)


def test_layers_that_contradict_the_predicted_class_are_suspicious(detector: LayersDetector, seen: Evidence) -> None:
    """The same image with another verdict forced on it: every layer now speaks against it."""
    turned = replace(seen, log_joint=seen.log_joint.roll(1, dims=1))
    assert bool((detector(turned) > detector(seen)).double().mean() > 0.99)


def test_one_layer_that_disagrees_is_enough(detector: LayersDetector, seen: Evidence) -> None:
    order = torch.randperm(len(seen.images), generator=torch.Generator().manual_seed(0))
    other = seen.class_index[order] != seen.class_index
    first = replace(seen, taps=(seen.taps[0][order], *seen.taps[1:]))
    assert float((detector(first) - detector(seen))[other].mean()) > 1


def test_a_class_without_an_image_and_dead_channels_do_not_break_it(network: Network, train: ImageSet) -> None:
    some = train.select((train.labels != 3).nonzero().squeeze(1)[:40])
    batches = [
        (replace(evidence, taps=(torch.zeros_like(evidence.taps[0]), *evidence.taps[1:])), labels)
        for evidence, labels in EvidenceBatches(network, some, torch.device("cpu"))
    ]
    detector = LayersDetector.fit(batches, generator=torch.Generator())
    assert bool(detector(batches[0][0]).isfinite().all())


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no clean image"):
        LayersDetector.fit([], generator=torch.Generator())
