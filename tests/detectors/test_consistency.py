import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor

from detectors.base import Evidence, gather_evidence
from detectors.consistency import BLUR_DEVIATION, FLOOR, ConsistencyDetector, small_changes
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from model.network import Network


@pytest.fixture(scope="module")
def network(digits_checkpoint: Checkpoint) -> Network:
    return digits_checkpoint.build_network().requires_grad_(False)


@pytest.fixture(scope="module")
def clean(digits_checkpoint: Checkpoint) -> Tensor:
    return to_unit(load_splits(digits_checkpoint.config.data).test.images)


@pytest.fixture
def detector() -> ConsistencyDetector:
    return ConsistencyDetector.fit([], generator=torch.Generator())


def evidence(network: Network, images: Tensor) -> Evidence:
    with torch.no_grad():
        return gather_evidence(network, images)


@pytest.mark.parametrize(("shape", "share"), [((2, 1, 28, 28), 1), ((1, 3, 40, 32), 1), ((3, 2, 7, 13), 0.25)])
def test_the_changes_are_those_of_scipy(shape: tuple[int, ...], share: float) -> None:
    """scipy.ndimage's linear shift with replicated edges, and its Gaussian cut off after one pixel."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    exact = images.double().numpy()
    moves = ((0, 0, 0, share), (0, 0, 0, -share), (0, 0, share, 0), (0, 0, -share, 0))
    expected = [ndimage.shift(exact, move, order=1, mode="nearest") for move in moves]
    expected.append(ndimage.gaussian_filter(exact, BLUR_DEVIATION, mode="nearest", radius=1, axes=(2, 3)))
    found = small_changes(images)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs).float())


def test_the_score_is_its_formula(detector: ConsistencyDetector, network: Network, clean: Tensor) -> None:
    """Five distances an image, from features asked for one image and one change at a time, in numpy."""
    judged = evidence(network, clean[:6])
    expected = []
    for image, features in zip(clean[:6], judged.features.double().numpy(), strict=True):
        changed = [network.embed(part).double().numpy()[0] for part in small_changes(image.unsqueeze(0))]
        logs = [np.log(np.sum((features - other) ** 2) / 2) for other in changed]
        expected.append(np.mean(logs) - np.log(np.linalg.norm(features)))
    np.testing.assert_allclose(detector(judged).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_flat_image_moves_least_of_all(detector: ConsistencyDetector, network: Network, clean: Tensor) -> None:
    """No change alters it: its score is the floor's, up to the network's rounding, and finite."""
    judged = evidence(network, torch.full((2, 1, 8, 8), 0.5))
    flat = detector(judged)
    expected = math.log(FLOOR) - judged.features.norm(dim=1).log()
    torch.testing.assert_close(flat, expected, atol=0.5, rtol=0)
    assert bool((detector(evidence(network, clean)) > flat[0] + 1).all())


def test_what_noise_leads_to_another_class_is_less_consistent(
    detector: ConsistencyDetector, network: Network, clean: Tensor
) -> None:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    before, after = evidence(network, clean), evidence(network, (clean + 0.4 * noise).clamp(0, 1))
    fooled = detector(after)[before.class_index != after.class_index]
    scores = torch.cat([detector(before), fooled])
    assert len(fooled) >= 10
    assert roc_auc_score([0] * len(clean) + [1] * len(fooled), scores.numpy()) > 0.75


def test_a_score_is_float32_of_its_own_image_and_has_a_gradient(
    detector: ConsistencyDetector, network: Network, clean: Tensor
) -> None:
    together = detector(evidence(network, clean[:10]))
    alone = torch.cat([detector(evidence(network, image.unsqueeze(0))) for image in clean[:10]])
    assert together.dtype == torch.float32
    assert not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    images = clean[:4].clone().requires_grad_()
    detector(gather_evidence(network, images)).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool(images.grad.flatten(1).any(1).all())


def test_steps_against_the_gradient_lower_the_score(
    detector: ConsistencyDetector, network: Network, clean: Tensor
) -> None:
    """An attacker who follows it gets somewhere."""
    images = clean[:20].clone()
    start = detector(evidence(network, images))
    for _ in range(10):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(detector(gather_evidence(network, images)).sum(), images)
        images = (images - 0.02 * gradient.sign()).clamp(0, 1).detach()
    change = detector(evidence(network, images)) - start
    assert change.mean() < -0.5
    assert (change < 0).double().mean() >= 0.9


def test_its_state_is_empty(detector: ConsistencyDetector, network: Network, clean: Tensor) -> None:
    judged = evidence(network, clean[:5])
    assert detector.state_dict() == {}
    assert torch.equal(ConsistencyDetector.from_state({})(judged), detector(judged))
