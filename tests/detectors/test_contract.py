"""One contract for every detector: a new one is covered as soon as detectors/known.py names it."""

import pytest
import torch
from torch import Tensor

from detectors.base import Detector, Evidence, gather_evidence
from detectors.consistency import ConsistencyDetector
from detectors.evidence_batches import EvidenceBatches
from detectors.known import KNOWN_DETECTORS
from detectors.screener import Screener
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from model.network import Network


@pytest.fixture(scope="module", params=KNOWN_DETECTORS.values(), ids=list(KNOWN_DETECTORS))
def kind(request: pytest.FixtureRequest) -> type[Detector]:
    found: type[Detector] = request.param
    return found


@pytest.fixture(scope="module")
def network(digits_checkpoint: Checkpoint) -> Network:
    return digits_checkpoint.build_network().requires_grad_(False)


@pytest.fixture(scope="module")
def clean(digits_checkpoint: Checkpoint) -> Tensor:
    return to_unit(load_splits(digits_checkpoint.config.data).test.images)


@pytest.fixture(scope="module")
def garbage(clean: Tensor) -> Tensor:
    return torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def detector(kind: type[Detector], network: Network, digits_checkpoint: Checkpoint) -> Detector:
    return fit(kind, network, digits_checkpoint)


def fit(kind: type[Detector], network: Network, checkpoint: Checkpoint) -> Detector:
    batches = EvidenceBatches(network, load_splits(checkpoint.config.data).train, torch.device("cpu"))
    return kind.fit(batches, generator=torch.Generator().manual_seed(0)).eval()


def evidence(network: Network, images: Tensor) -> Evidence:
    with torch.no_grad():
        return gather_evidence(network, images)


def test_it_goes_by_its_name(kind: type[Detector], detector: Detector) -> None:
    assert KNOWN_DETECTORS[detector.name] is kind
    assert isinstance(detector, kind)


def test_one_finite_score_a_row(detector: Detector, network: Network, clean: Tensor) -> None:
    for count in (1, 7):
        scores = detector(evidence(network, clean[:count]))
        assert scores.shape == (count,)
        assert scores.dtype == torch.float32
        assert bool(scores.isfinite().all())
        assert not scores.requires_grad


# What a network says of noise may well be the same however it is shifted.
SEES_NOISE = {name: kind for name, kind in KNOWN_DETECTORS.items() if kind is not ConsistencyDetector}


@pytest.mark.parametrize("kind", SEES_NOISE.values(), ids=list(SEES_NOISE), scope="module")
def test_garbage_is_more_suspicious_than_clean_images(
    detector: Detector, network: Network, clean: Tensor, garbage: Tensor
) -> None:
    on_clean, on_garbage = (detector(evidence(network, images)) for images in (clean, garbage))
    assert (on_garbage.unsqueeze(1) > on_clean).double().mean() > 0.6  # the area under the ROC curve


def test_its_state_makes_it_again(kind: type[Detector], detector: Detector, network: Network, clean: Tensor) -> None:
    again = kind.from_state(detector.state_dict())
    judged = evidence(network, clean[:50])
    assert torch.equal(again(judged), detector(judged))


def test_fitting_again_gives_the_same_scores(
    kind: type[Detector], detector: Detector, network: Network, digits_checkpoint: Checkpoint, clean: Tensor
) -> None:
    again = fit(kind, network, digits_checkpoint)
    judged = evidence(network, clean[:50])
    assert torch.equal(again(judged), detector(judged))


def test_it_is_differentiable_in_the_images(detector: Detector, network: Network, clean: Tensor) -> None:
    images = clean[:4].clone().requires_grad_()
    detector(gather_evidence(network, images)).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool((images.grad.flatten(1).abs().sum(1) > 0).all())


def test_a_score_depends_on_its_own_image_alone(detector: Detector, network: Network, clean: Tensor) -> None:
    together = detector(evidence(network, clean[:20]))
    alone = torch.cat([detector(evidence(network, image.unsqueeze(0))) for image in clean[:20]])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)  # a sum that cancels has no relative precision


def test_it_keeps_no_memory_of_what_it_judged(detector: Detector, network: Network, clean: Tensor) -> None:
    judged = evidence(network, clean[:20])
    first = detector(judged)
    detector(evidence(network, clean[20:]))
    assert torch.equal(detector(judged), first)


def test_a_screener_carries_it(kind: type[Detector], digits_screener: Screener) -> None:
    assert all(name in KNOWN_DETECTORS for name in digits_screener.detectors)
    assert set(digits_screener.fusion.names) <= set(digits_screener.detectors)
