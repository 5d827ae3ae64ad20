from itertools import pairwise

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from detectors.evaluation.attacks import AttackError
from detectors.evaluation.corruptions import CORRUPTIONS, Corruption, corrupt, gaussian_blur, rotation, translation
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit


@pytest.fixture(scope="module")
def digits(digits_checkpoint: Checkpoint) -> Tensor:
    return to_unit(load_splits(digits_checkpoint.config.data).test.images[:40])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(number: int = 12) -> Tensor:
    """Colour images of 24 x 32 pixels without sharp edges."""
    coarse = torch.rand((number, 3, 6, 8), generator=generator())
    return torch.nn.functional.interpolate(coarse, (24, 32), mode="bilinear").clamp(0, 1)


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=lambda corruption: corruption.name)
def test_every_corruption_keeps_the_contract(corruption: Corruption, digits: Tensor) -> None:
    state = torch.get_rng_state()
    for images in (digits, smooth()):
        given = images.clone()
        sizes = []
        for severity in range(1, 6):
            found = corrupt(corruption.name, images, severity=severity, seed=7)
            assert (found.shape, found.dtype) == (images.shape, images.dtype)
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
            assert torch.equal(found, corrupt(corruption.name, images, severity=severity, seed=7))
            sizes.append(float((found - images).abs().mean()))
        assert torch.equal(images, given)
        assert sizes[-1] > 0.02
        assert all(later >= earlier - 1e-6 for earlier, later in pairwise(sizes)), sizes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=lambda corruption: corruption.name)
def test_a_parameter_of_nothing_changes_nothing(corruption: Corruption, digits: Tensor) -> None:
    for images in (digits, smooth()):
        assert torch.allclose(corruption.change(images, 0.0, generator()), images, atol=1e-5)


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=lambda corruption: corruption.name)
def test_severities_rise_and_only_the_mild_keep_the_class(corruption: Corruption) -> None:
    assert list(corruption.severities) == sorted(set(corruption.severities))
    assert corruption.keeps_class[0]
    assert not corruption.keeps_class[4]
    assert list(corruption.keeps_class) == sorted(corruption.keeps_class, reverse=True)


@pytest.mark.parametrize("name", ["gaussian-noise", "uniform-noise", "salt-and-pepper", "rotation", "occlusion"])
def test_seeds_matter_where_chance_does(name: str, digits: Tensor) -> None:
    assert not torch.equal(*(corrupt(name, digits, severity=3, seed=seed) for seed in (0, 1)))


def test_the_last_severities_leave_nothing_of_the_image(digits: Tensor) -> None:
    assert torch.allclose(corrupt("inverted", digits, severity=5), 1 - digits, atol=1e-6)
    grey = corrupt("constant", digits, severity=5).flatten(1)
    assert torch.allclose(grey, grey[:, :1].expand_as(grey), atol=1e-6)
    assert len(grey[:, 0].unique()) == len(digits)
    assert torch.equal(corrupt("uniform-noise", digits, severity=5), corrupt("uniform-noise", 1 - digits, severity=5))


def test_noise_has_the_stated_deviation() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    noise = corrupt("gaussian-noise", images, severity=2) - images
    assert float(noise.std()) == pytest.approx(CORRUPTIONS["gaussian-noise"].severities[1], rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)


def test_salt_and_pepper_hits_the_stated_share_of_pixels_in_every_channel() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    hit = corrupt("salt-and-pepper", images, severity=4) != images
    assert float(hit.double().mean()) == pytest.approx(0.25, abs=0.02)
    assert bool((hit.all(1) == hit.any(1)).all())


def test_blur_is_scipy_s() -> None:
    images = smooth(3)
    expected = gaussian_filter(images.numpy(), sigma=0.06 * 24, axes=(2, 3), mode="mirror", truncate=3.2)
    assert torch.allclose(gaussian_blur(images, 0.06, generator()), torch.from_numpy(expected), atol=1e-5)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    image = torch.rand((20, 1, 9, 9), generator=generator())
    turned = rotation(image, 90.0, generator())
    ways = [torch.rot90(image, turns, (2, 3)) for turns in (1, 3)]
    either = torch.stack([torch.isclose(turned, way, atol=1e-4).flatten(1).all(1) for way in ways])
    assert bool(either.any(0).all())
    assert bool(either.any(1).all())


def test_a_quarter_turn_of_an_oblong_image_turns_what_is_in_it() -> None:
    """A bar across the centre keeps its length and width, whatever the image's sides."""
    image = torch.zeros((20, 1, 33, 17))
    image[:, :, 16, 4:13] = 1
    turned = rotation(image, 90.0, generator())
    assert torch.allclose(turned[:, 0, 12:21, 8], torch.ones(20, 9), atol=1e-4)
    assert float(turned.sum()) == pytest.approx(float(image.sum()), rel=1e-3)


def test_a_translation_moves_by_the_stated_share() -> None:
    images = torch.zeros((30, 1, 20, 20))
    images[:, :, 10, 10] = 1
    moved = translation(images, 0.2, generator())
    places = moved.flatten(1).argmax(1)
    assert torch.allclose(moved.flatten(1).amax(1), torch.ones(30), atol=1e-4)
    assert {(int(place) // 20, int(place) % 20) for place in places} == {(6, 6), (6, 14), (14, 6), (14, 14)}


def test_occlusion_hides_a_square_of_the_stated_side() -> None:
    images = torch.ones((30, 2, 20, 20))
    hidden = corrupt("occlusion", images, severity=4) == 0.5
    assert bool((hidden.flatten(1).sum(1) == 2 * 10 * 10).all())
    assert len({tuple(index.tolist()) for index in hidden[:, 0].flatten(1).double().argmax(1).unsqueeze(1)}) > 5


def test_contrast_and_brightness_are_their_formulas() -> None:
    images = 0.25 + 0.25 * smooth()
    mean = images.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(corrupt("contrast", images, severity=2), mean + 0.6 * (images - mean), atol=1e-6)
    assert torch.allclose(corrupt("brightness", images, severity=2), images + 0.15, atol=1e-6)


def test_what_does_not_exist_is_refused(digits: Tensor) -> None:
    with pytest.raises(AttackError, match="unknown corruption 'fog'; there are gaussian-noise, uniform-noise, "):
        corrupt("fog", digits, severity=1)
    for severity in (0, 6, -1):
        with pytest.raises(AttackError, match=f"severity of contrast must be 1 to 5, got {severity}"):
            corrupt("contrast", digits, severity=severity)
