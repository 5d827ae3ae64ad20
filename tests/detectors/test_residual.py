import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor

import detectors.residual as residual
from detectors.base import Evidence, gather_evidence
from detectors.evidence_batches import EvidenceBatches
from detectors.residual import HIGH_PASS, KNEE, ResidualDetector, add_noise
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.errors import CalibrationError
from model.image_set import to_unit
from model.network import Network

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int, *, shape: tuple[int, int, int] = (3, 16, 16), seed: int) -> Tensor:
    """Blobs on 8-bit grey levels: content without noise."""
    coarse = torch.rand((count, shape[0], 4, 4), generator=seeded(seed))
    fine = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1)
    return (255 * fine).round() / 255


@pytest.fixture(scope="module")
def network(digits_checkpoint: Checkpoint) -> Network:
    return digits_checkpoint.build_network().requires_grad_(False)


def evidence(images: Tensor, network: Network) -> Evidence:
    """The detector judges images alone: what the network saw of them is left empty."""
    nothing = torch.zeros(len(images), 1)
    return Evidence(images=images, features=nothing, log_joint=nothing, taps=(), network=network)


def fit(images: Tensor, network: Network, *, seed: int = 0) -> ResidualDetector:
    batches = [
        (evidence(part, network), torch.zeros(len(part), dtype=torch.int64)) for part in torch.split(images, 50)
    ]
    return ResidualDetector.fit(batches, generator=seeded(seed))


@pytest.fixture(scope="module")
def detector(network: Network) -> ResidualDetector:
    return fit(smooth_images(200, seed=0), network)


def area(clean: Tensor, noisy: Tensor) -> float:
    return float(roc_auc_score([0] * len(clean) + [1] * len(noisy), torch.cat([clean, noisy]).numpy()))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_residuals_are_those_of_scipy(channels: int) -> None:
    """scipy.ndimage.correlate with replicated edges, one filter after the other on every channel."""
    images = torch.rand((2, channels, 9, 11), generator=seeded(0))
    found = ResidualDetector(channels).residuals(images)
    expected = [
        [ndimage.correlate(channel, np.array(kernel), mode="nearest") for channel in image for kernel in HIGH_PASS]
        for image in images.double().numpy()
    ]
    oracle = torch.tensor(np.array(expected))
    torch.testing.assert_close(found, (oracle / (oracle.abs() + KNEE)).float(), atol=1e-5, rtol=1e-4)


def test_what_is_flat_leaves_no_residual_and_every_filter_stops_brightness() -> None:
    assert torch.equal(torch.tensor(HIGH_PASS).sum((1, 2)), torch.zeros(len(HIGH_PASS)))
    flat = torch.full((2, 3, 8, 8), 0.25)
    assert not ResidualDetector(3).residuals(flat).any()


def test_noise_that_it_never_saw_is_told_from_clean_images(detector: ResidualDetector, network: Network) -> None:
    """Checkerboards are none of its kinds; the stronger, the more suspicious."""
    clean = smooth_images(200, seed=1)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = 1.0 - 2.0 * ((rows + columns) % 2)
    on_clean = detector(evidence(clean, network))
    scores = [detector(evidence((clean + eps / 255 * board).clamp(0, 1), network)) for eps in (1, 2, 4)]
    areas = [area(on_clean, found) for found in scores]
    assert areas == sorted(areas)
    assert areas[1] > 0.97
    assert areas[2] > 0.99


def test_rounding_to_eight_bits_does_not_hide_noise_nor_look_like_it(
    detector: ResidualDetector, network: Network
) -> None:
    clean = smooth_images(200, seed=2)
    noisy = (clean + 4 / 255 * torch.randn(clean.shape, generator=seeded(3))).clamp(0, 1)
    between = clean.clamp(1 / 255, 1 - 1 / 255) + 0.37 / 255  # off the grey levels, and as clean as before
    on_clean, on_noisy, on_rounded, on_shifted = (
        detector(evidence(images, network)) for images in (clean, noisy, (255 * noisy).round() / 255, between)
    )
    assert min(area(on_clean, on_noisy), area(on_clean, on_rounded)) > 0.99
    assert abs(area(on_clean, on_shifted) - 0.5) < 0.1


def test_on_real_images_of_eight_pixels(digits_checkpoint: Checkpoint, network: Network) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    detector = ResidualDetector.fit(EvidenceBatches(network, splits.train, CPU), generator=seeded(0))
    clean = to_unit(splits.test.images)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=seeded(1)).sign()).clamp(0, 1)
    with torch.no_grad():
        on_clean, on_noisy = (detector(gather_evidence(network, images)) for images in (clean, noisy))
    assert on_clean.dtype == torch.float32
    assert not on_clean.requires_grad
    assert area(on_clean, on_noisy) > 0.95


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 13), (4, 32, 8)])
def test_any_number_of_channels_and_any_size(
    shape: tuple[int, int, int], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual, "MIN_STEPS", 10)
    images = smooth_images(8, shape=shape, seed=4)
    detector = fit(images, network)
    assert detector(evidence(images, network)).shape == (8,)
    again = ResidualDetector.from_state(load(save(detector.state_dict())))
    assert torch.equal(again(evidence(images, network)), detector(evidence(images, network)))


def test_other_widths_are_recovered_from_the_state(network: Network) -> None:
    detector = ResidualDetector(2, (3, 5, 7, 4))
    detector._initialise(seeded(0))
    images = smooth_images(3, shape=(2, 8, 8), seed=0)
    again = ResidualDetector.from_state(detector.state_dict())
    assert [tuple(part.shape) for part in again.parameters()] == [tuple(part.shape) for part in detector.parameters()]
    assert torch.equal(again(evidence(images, network)), detector(evidence(images, network)))


def test_the_generator_is_the_only_source_of_chance(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "MIN_STEPS", 10)
    images = smooth_images(100, shape=(1, 8, 8), seed=5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit(images, network).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = fit(images, network).state_dict(), fit(images, network, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_score_depends_on_its_own_image_alone(detector: ResidualDetector, network: Network) -> None:
    images = smooth_images(20, seed=6)
    together = detector(evidence(images, network))
    alone = torch.cat([detector(evidence(image.unsqueeze(0), network)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_score_and_reach_hard_edges(detector: ResidualDetector, network: Network) -> None:
    """Numeric derivatives in float64, and no pixel without a way in, even at black against white."""
    images = (smooth_images(2, shape=(3, 8, 8), seed=7) > 0.5).double().requires_grad_()
    exact = ResidualDetector.from_state(detector.state_dict()).double()

    def residuals(inputs: Tensor) -> Tensor:
        return exact.residuals(inputs)

    assert torch.autograd.gradcheck(residuals, (0.8 * images.detach() + 0.1).requires_grad_(), atol=1e-4)
    inputs = images.detach().float().requires_grad_()
    detector(evidence(inputs, network)).sum().backward()
    assert inputs.grad is not None
    assert bool(inputs.grad.isfinite().all())
    assert (inputs.grad != 0).double().mean() > 0.95


@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 3, 11, 17)])
def test_noise_stays_in_range_and_is_half_of_the_time_on_grey_levels(shape: tuple[int, ...]) -> None:
    clean = torch.full(shape, 0.25)
    noisy = torch.cat([add_noise(clean, seeded(seed)) for seed in range(8)])
    change = (noisy - 0.25).abs().amax((1, 2, 3))
    on_levels = ((255 * noisy - (255 * noisy).round()).abs() < 1e-3).flatten(1).all(1)
    assert float(on_levels.double().mean()) == pytest.approx(0.5, abs=0.08)
    assert bool(((noisy >= 0) & (noisy <= 1)).all())
    assert bool((change > 0).double().mean() > 0.95)
    median = (residual.AMPLITUDES[0] * residual.AMPLITUDES[1]) ** 0.5  # of a log-uniform amplitude
    assert median / 2 < float(change.median()) < 3 * median


def test_noise_is_clamped_where_images_are_saturated() -> None:
    black = torch.zeros(256, 1, 8, 8)
    noisy = add_noise(black, seeded(0))
    assert float(noisy.min()) == 0
    assert 0.3 < float((noisy == 0).double().mean()) < 0.8


def test_a_sample_is_uniform_over_all_batches(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of 40 images, in several batches, is kept in about half of the draws of 20, never twice."""
    monkeypatch.setattr(residual, "MAX_IMAGES", 20)
    images = torch.arange(40.0).view(-1, 1, 1, 1)
    batches = [
        (evidence(part, network), torch.zeros(len(part), dtype=torch.int64)) for part in torch.split(images, 8)
    ]
    counts = torch.zeros(40)
    generator = seeded(0)
    for _ in range(400):
        kept = residual._sample_images(batches, generator).flatten().long()
        assert len(torch.unique(kept)) == 20
        counts[kept] += 1
    assert float((counts - 200).abs().max()) < 4.5 * 10  # deviations of a binomial(400, 1/2)


def test_a_sample_is_bounded_in_memory(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "MAX_VALUES", 10 * 64)
    images = smooth_images(30, shape=(1, 8, 8), seed=8)
    batches = [(evidence(images, network), torch.zeros(30, dtype=torch.int64))]
    assert len(residual._sample_images(batches, seeded(0))) == 10


def test_without_images_there_is_nothing_to_fit() -> None:
    with pytest.raises(CalibrationError, match="no clean image"):
        ResidualDetector.fit([], generator=seeded(0))
