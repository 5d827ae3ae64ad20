from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy import ndimage
from torch import Tensor, nn

from detectors.base import Evidence, gather_evidence
from detectors.evidence_batches import EvidenceBatches
from detectors.squeezing import FeatureSqueezingDetector, median_filter, reduce_bits
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.errors import CalibrationError
from model.image_set import to_unit
from model.network import Activations, Network


@pytest.fixture(scope="module")
def network(digits_checkpoint: Checkpoint) -> Network:
    return digits_checkpoint.build_network().requires_grad_(False)


@pytest.fixture(scope="module")
def clean(digits_checkpoint: Checkpoint) -> Tensor:
    return to_unit(load_splits(digits_checkpoint.config.data).test.images)


@pytest.fixture(scope="module")
def detector() -> FeatureSqueezingDetector:
    return FeatureSqueezingDetector(torch.tensor(2), torch.tensor(True))


def evidence(network: Network, images: Tensor) -> Evidence:
    with torch.no_grad():
        return gather_evidence(network, images)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 9, 13), (1, 2, 32, 8)])
def test_the_median_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, 2, 2), mode="reflect")
    assert torch.equal(median_filter(images), torch.from_numpy(expected))


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_fewer_bits_are_evenly_spaced_levels_and_the_nearest_one(bits: int) -> None:
    images = torch.linspace(0, 1, 4096).view(1, 1, 64, 64)
    found = reduce_bits(images, bits)
    levels = np.linspace(0, 1, 2**bits)
    nearest = np.abs(found.numpy().ravel()[:, None] - levels).argmin(1)
    assert len(np.unique(found.numpy())) == 2**bits
    np.testing.assert_allclose(found.numpy().ravel(), levels[nearest], atol=1e-6)
    assert float((found - images).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(reduce_bits(images, torch.tensor(bits)), found)


def test_gradients_pass_fewer_bits_as_they_are_and_the_median_to_the_pixel_it_chose() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((1, 1, 8, 8), generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn((1, 1, 8, 8), generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(reduce_bits(images, 3), images, upstream)
    assert torch.equal(gradient, upstream)
    assert torch.autograd.gradcheck(median_filter, (images,))


def test_the_score_is_its_formula(detector: FeatureSqueezingDetector, network: Network, clean: Tensor) -> None:
    """Largest L1 distance of posteriors, one image at a time in numpy."""
    judged = evidence(network, clean[:20])

    def posterior(images: Tensor) -> np.ndarray:
        log_joint = evidence(network, images).log_joint.double().numpy()
        unnormalised = np.exp(log_joint - log_joint.max(1, keepdims=True))
        return cast(np.ndarray, unnormalised / unnormalised.sum(1, keepdims=True))

    expected = []
    for image in clean[:20].unsqueeze(1):
        few_bits = torch.round(image * 3) / 3
        median = torch.from_numpy(ndimage.median_filter(image.numpy(), size=(1, 1, 2, 2)))
        expected.append(max(np.abs(posterior(image) - posterior(squeezed)).sum() for squeezed in (few_bits, median)))
    np.testing.assert_allclose(detector(judged).numpy(), expected, rtol=1e-3, atol=1e-5)


class Comparison(Network):
    """Class 1 where the left half is brighter than the right one; equal halves are class 0."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, images: Tensor) -> Activations:
        side = (images[:, :, :, :4] - images[:, :, :, 4:]).mean((1, 2, 3))
        log_joint = torch.stack([torch.zeros_like(side), 1000 * side - 1e-3], 1)
        return Activations(images.flatten(1), log_joint, ())


def pictured(images: Tensor, label: int) -> tuple[Evidence, Tensor]:
    return gather_evidence(Comparison(), images), torch.full((len(images),), label)


def batch(left: float, right: float, *, label: int, count: int = 10) -> tuple[Evidence, Tensor]:
    images = torch.full((count, 1, 8, 8), left)
    images[:, :, :, 4:] = right
    return pictured(images, label)


@pytest.mark.parametrize(
    ("batches", "bits"),
    [
        ([batch(0.9, 0.1, label=1)], 1),
        ([batch(0.9, 0.6, label=1)], 2),  # one bit makes both halves white, two make them 1 and 2 / 3
        ([batch(0.97, 0.85, label=1)], 3),  # both white with two bits, 1 and 6 / 7 with three
        ([batch(0.6, 0.9, label=0)], 1),  # equal halves are class 0, and that is right
        ([batch(0.9, 0.6, label=0)], 1),  # wrong as it is: nothing can be lost
        ([batch(0.9, 0.1, label=1), batch(0.9, 0.6, label=1)], 2),
        ([batch(0.6, 0.5999, label=1)], 7),  # never right again: the most bits there are
    ],
)
def test_the_fewest_bits_that_keep_the_accuracy(batches: list[tuple[Evidence, Tensor]], bits: int) -> None:
    assert int(FeatureSqueezingDetector.fit(batches, generator=torch.Generator()).bits) == bits


def test_one_percentage_point_may_be_lost() -> None:
    """Of a hundred images one needs two bits: not worth it. Two are."""
    easy, hard = batch(0.9, 0.1, label=1), batch(0.9, 0.6, label=1)
    mixed = pictured(torch.cat([easy[0].images[:9], hard[0].images[:1]]), 1)
    for num_mixed, bits in ((1, 1), (2, 2)):
        batches = [easy] * (10 - num_mixed) + [mixed] * num_mixed
        assert int(FeatureSqueezingDetector.fit(batches, generator=torch.Generator()).bits) == bits


def test_a_median_that_costs_accuracy_is_left_out() -> None:
    """Columns 1, 0, 1, 0 are darker than 0.6, but the upper median of 2 x 2 pixels makes them white."""
    stripes = torch.full((10, 1, 8, 8), 0.6)
    stripes[:, :, :, :4] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    without = FeatureSqueezingDetector.fit([pictured(stripes, 0)], generator=torch.Generator())
    assert not without.smooths
    for num_lost, smooths in ((2, True), (3, False)):  # of ten images
        mixed = torch.cat([batch(0.1, 0.9, label=0)[0].images[num_lost:], stripes[:num_lost]])
        fitted = FeatureSqueezingDetector.fit([pictured(mixed, 0)], generator=torch.Generator())
        assert bool(fitted.smooths) is smooths
    judged = pictured(stripes, 0)[0]
    assert without(judged).tolist() == pytest.approx([0.0] * 10)
    both = FeatureSqueezingDetector(without.bits, torch.tensor(True))
    assert both(judged).tolist() == pytest.approx([2.0] * 10)


def test_on_a_trained_network(network: Network, clean: Tensor, digits_checkpoint: Checkpoint) -> None:
    """Fitted on real images; its state makes it again, also from a file, and a row is judged by itself."""
    train = load_splits(digits_checkpoint.config.data).train
    fitted = FeatureSqueezingDetector.fit(
        EvidenceBatches(network, train, torch.device("cpu")), generator=torch.Generator()
    )
    judged = evidence(network, clean[:30])
    scores = fitted(judged)
    again = FeatureSqueezingDetector.from_state(load(save(fitted.state_dict())))
    alone = torch.cat([fitted(evidence(network, image.unsqueeze(0))) for image in clean[:30]])
    assert scores.dtype == torch.float32
    assert bool(((scores >= 0) & (scores <= 2)).all())
    assert torch.equal(again(judged), scores)
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-5)
    garbage = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))
    assert fitted(evidence(network, garbage)).mean() > 2 * scores.mean()


def test_it_is_differentiable_in_the_images(
    detector: FeatureSqueezingDetector, network: Network, clean: Tensor
) -> None:
    images = clean[:4].clone().requires_grad_()
    detector(gather_evidence(network, images)).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool(images.grad.flatten(1).any(1).all())


def test_without_images_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(CalibrationError, match="no clean image"):
        FeatureSqueezingDetector.fit([], generator=torch.Generator())
