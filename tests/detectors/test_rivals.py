"""The rival detectors on a trained network's evidence, against scikit-learn and SciPy."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.special import logsumexp
from sklearn.covariance import ShrunkCovariance
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detectors.base import Detector, Evidence, gather_evidence
from detectors.confidence import ConfidenceDetector
from detectors.energy import EnergyDetector
from detectors.evidence_batches import EvidenceBatches
from detectors.gathering import gather_rows, layers_of
from detectors.kernel_density import KernelDensityDetector
from detectors.knn import KNNDetector
from detectors.lid import LIDDetector
from detectors.mahalanobis import RIDGE, MahalanobisDetector
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from tests.detectors.synthetic import generator

RIVALS: list[type[Detector]] = [
    EnergyDetector,
    ConfidenceDetector,
    MahalanobisDetector,
    KNNDetector,
    KernelDensityDetector,
    LIDDetector,
]


@pytest.fixture(scope="module")
def clean(digits_checkpoint: Checkpoint) -> EvidenceBatches:
    network = digits_checkpoint.build_network().requires_grad_(False)
    return EvidenceBatches(network, load_splits(digits_checkpoint.config.data).train, torch.device("cpu"))


@pytest.fixture(scope="module")
def judged(clean: EvidenceBatches, digits_checkpoint: Checkpoint) -> Evidence:
    """Test images, and as many of noise."""
    network = next(iter(clean))[0].network
    images = to_unit(load_splits(digits_checkpoint.config.data).test.images)
    noise = torch.rand(images.shape, generator=generator())
    with torch.no_grad():
        return gather_evidence(network, torch.cat([images, noise]))


def agree(scores: Tensor, expected: np.ndarray, *, rtol: float = 1e-4) -> bool:
    return bool(np.allclose(scores.numpy(), expected, rtol=rtol, atol=rtol))


def test_energy_is_that_of_the_linear_classifier(clean: EvidenceBatches, judged: Evidence) -> None:
    mixture = judged.network.mixture
    means, log_priors = mixture.means.double().numpy(), mixture.log_priors.double().numpy()
    logits = judged.features.double().numpy() @ means.T - 0.5 * np.square(means).sum(1) + log_priors
    assert mixture.log_variances is None
    assert agree(EnergyDetector.fit(clean, generator=generator())(judged), -logsumexp(logits, axis=1))


def test_confidence_is_the_logarithm_of_one_minus_the_greatest_posterior(
    clean: EvidenceBatches, judged: Evidence
) -> None:
    others = np.sort(judged.log_joint.double().numpy(), 1)[:, :-1]
    expected = logsumexp(others, axis=1) - logsumexp(judged.log_joint.double().numpy(), axis=1)
    assert agree(ConfidenceDetector.fit(clean, generator=generator())(judged), expected)


def test_mahalanobis_distances_are_scikit_learns(clean: EvidenceBatches, judged: Evidence) -> None:
    rows, expected = gather_rows(clean), np.zeros(len(judged.features))
    for seen, asked in zip(rows.layers, layers_of(judged), strict=True):
        values, targets, outputs = seen.double().numpy(), rows.labels.numpy(), asked.double().numpy()
        means = np.stack([values[targets == index].mean(0) for index in range(rows.num_classes)])
        # (1 - s) Sigma + s mean(Sigma_ii) I is ours divided by 1 + RIDGE.
        covariance = ShrunkCovariance(shrinkage=RIDGE / (1 + RIDGE), assume_centered=True)
        covariance.fit(values - means[targets])
        expected += np.min([covariance.mahalanobis(outputs - mean) for mean in means], axis=0) / (1 + RIDGE)
    assert agree(MahalanobisDetector.fit(clean, generator=generator())(judged), expected, rtol=1e-3)


def test_knn_distances_are_scikit_learns(clean: EvidenceBatches, judged: Evidence) -> None:
    rows = gather_rows(clean)
    count = len(rows.labels) // 100  # ten classes, a tenth of each one's share
    unit = torch.nn.functional.normalize
    neighbours = NearestNeighbors(algorithm="brute").fit(unit(rows.features.double()).numpy())
    expected = neighbours.kneighbors(unit(judged.features.double()).numpy(), count)[0][:, -1]
    assert agree(KNNDetector.fit(clean, generator=generator())(judged), expected)


def test_kernel_densities_are_scikit_learns(clean: EvidenceBatches, judged: Evidence) -> None:
    detector = KernelDensityDetector.fit(clean, generator=generator())
    rows, expected = gather_rows(clean), np.zeros(len(judged.features))
    for index in range(rows.num_classes):
        # One leaf: a tree of many loses all digits far from the data, where it subtracts bounds from bounds.
        kernels = KernelDensity(bandwidth=float(detector.get_buffer("bandwidth")), leaf_size=len(rows.labels))
        kernels.fit(rows.features[rows.labels == index].double().numpy())
        asked = (judged.class_index == index).numpy()
        expected[asked] = -kernels.score_samples(judged.features.double().numpy()[asked])
    assert agree(detector(judged), expected)


def test_dimensionality_is_the_papers_formula(clean: EvidenceBatches, judged: Evidence) -> None:
    detector = LIDDetector.fit(clean, generator=generator())
    expected = []
    for layer, asked in zip(detector.layers, layers_of(judged), strict=True):
        reference = layer.get_buffer("reference").double().numpy()
        distances = NearestNeighbors(algorithm="brute").fit(reference).kneighbors(asked.double().numpy(), 20)[0]
        expected.append(-1 / np.log(distances / distances[:, -1:]).mean(1))
    assert agree(detector(judged), np.mean(expected, 0), rtol=1e-3)


@pytest.mark.parametrize("kind", RIVALS)
def test_state_passes_through_safetensors(kind: type[Detector], clean: EvidenceBatches, judged: Evidence) -> None:
    detector = kind.fit(clean, generator=generator())
    assert torch.equal(kind.from_state(load(save(detector.state_dict())))(judged), detector(judged))


class LargestOutput(TorchDispatchMode):
    """The most values in any tensor made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = function(*args, **(kwargs or {}))
        self.size = max(self.size, output.numel() if isinstance(output, Tensor) else 0)
        return output


@pytest.mark.parametrize("kind", [KNNDetector, KernelDensityDetector, LIDDetector])
def test_no_difference_of_every_image_to_every_reference(
    kind: type[Detector], clean: EvidenceBatches, judged: Evidence
) -> None:
    detector = kind.fit(clean, generator=generator())
    num_references = min(len(clean), 1_000)
    with LargestOutput() as largest:
        detector(judged)
    assert largest.size <= 2 * len(judged.features) * num_references
