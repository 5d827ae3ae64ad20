import pytest
import torch
from torch import Tensor

from model.augmentation import augment
from model.config import AugmentationConfig

ALL = AugmentationConfig(pad=2, mirror=True, rotation=15.0, translation=0.1, scale=0.2, shear=10.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 64, channels: int = 3, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(count, channels, height, width, generator=generator(9))


def centre_of_mass(images: Tensor) -> Tensor:
    """(n, 2): row and column."""
    weights = images.sum(1) / images.sum((1, 2, 3)).view(-1, 1, 1)
    rows = (weights.sum(2) * torch.arange(images.shape[2])).sum(1)
    columns = (weights.sum(1) * torch.arange(images.shape[3])).sum(1)
    return torch.stack([rows, columns], 1)


def disc(count: int, side: int = 33, radius: float = 4.0) -> Tensor:
    axis = torch.arange(side) - side // 2
    inside = axis.square().unsqueeze(0) + axis.square().unsqueeze(1) <= radius**2
    return inside.float().expand(count, 1, side, side).clone()


def test_nothing_configured_changes_nothing() -> None:
    images = random_images()
    assert torch.equal(augment(images, AugmentationConfig(), generator()), images)


@pytest.mark.parametrize(
    "config",
    [
        ALL,
        AugmentationConfig(pad=4),
        AugmentationConfig(mirror=True),
        AugmentationConfig(rotation=180.0),
        AugmentationConfig(translation=0.5),
        AugmentationConfig(scale=0.5),
        AugmentationConfig(shear=45.0),
        AugmentationConfig(erase=4),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range_are_kept(config: AugmentationConfig, channels: int) -> None:
    images = random_images(channels=channels)
    changed = augment(images, config, generator())
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    assert not torch.equal(changed, images)


def test_the_same_generator_gives_the_same_images() -> None:
    images = random_images()
    first, again, other = (augment(images, ALL, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_images_given_are_left_alone() -> None:
    images = random_images()
    before = images.clone()
    augment(images, ALL, generator())
    assert torch.equal(images, before)


def test_mirror_is_a_flip_of_about_half() -> None:
    images = random_images(400)
    changed = augment(images, AugmentationConfig(mirror=True), generator())
    flipped = (changed == images.flip(3)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert bool((flipped ^ kept).all())
    assert 150 < int(flipped.sum()) < 250


def test_a_padded_crop_is_a_whole_shift_into_zeros() -> None:
    pad, count = 3, 300
    images = random_images(count)
    changed = augment(images, AugmentationConfig(pad=pad), generator())
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    shifts = torch.zeros(2 * pad + 1, 2 * pad + 1, dtype=torch.int64)
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            same = (changed == padded[:, :, row : row + 12, column : column + 16]).flatten(1).all(1)
            shifts[row, column] = same.sum()
    assert int(shifts.sum()) == count  # each image is exactly one of the crops
    assert int((shifts > 0).sum()) > 40  # and nearly all of the 49 crops occur


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_translation_moves_by_up_to_its_share_of_the_image(share: float) -> None:
    images = disc(400)
    moved = centre_of_mass(augment(images, AugmentationConfig(translation=share), generator())) - 16
    limit = share * 33
    assert moved.abs().max() <= limit + 1e-3
    for axis in (0, 1):
        assert moved[:, axis].abs().max() > 0.95 * limit
        assert moved[:, axis].mean().abs() < 0.15 * limit
        assert moved[:, axis].std() == pytest.approx(limit / 3**0.5, rel=0.1)
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.2


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_scale_changes_the_area_by_the_square(share: float) -> None:
    areas = augment(disc(400), AugmentationConfig(scale=share), generator()).sum((1, 2, 3)) / disc(1).sum()
    assert areas.min() == pytest.approx((1 - share) ** 2, rel=0.08)
    assert areas.max() == pytest.approx((1 + share) ** 2, rel=0.08)


def test_rotation_turns_about_the_centre_by_up_to_its_angle() -> None:
    images = torch.zeros(400, 1, 33, 33)
    images[:, :, 15:18, 28:31] = 1.0  # 13 pixels to the right of the centre
    place = centre_of_mass(augment(images, AugmentationConfig(rotation=30.0), generator())) - 16
    angles = torch.rad2deg(torch.atan2(place[:, 0], place[:, 1]))
    assert torch.allclose(place.norm(dim=1), torch.full((400,), 13.0), atol=0.2)
    assert angles.abs().max() <= 30.5
    assert angles.min() < -28
    assert angles.max() > 28


def test_rotation_keeps_circles_round_in_images_that_are_not_square() -> None:
    images = torch.zeros(200, 1, 33, 65)
    images[:, :, 15:18, 44:47] = 1.0  # 13 pixels to the right of the centre
    place = centre_of_mass(augment(images, AugmentationConfig(rotation=90.0), generator()))
    distances = (place - torch.tensor([16.0, 32.0])).norm(dim=1)
    assert torch.allclose(distances, torch.full((200,), 13.0), atol=0.2)


def test_shear_slides_rows_along_themselves() -> None:
    images = torch.zeros(400, 1, 33, 33)
    images[:, :, 5:8, 15:18] = 1.0  # 10 pixels above the centre
    place = centre_of_mass(augment(images, AugmentationConfig(shear=20.0), generator())) - 16
    assert torch.allclose(place[:, 0], torch.full((400,), -10.0), atol=0.05)
    limit = 10 * float(torch.tan(torch.deg2rad(torch.tensor(20.0))))
    assert place[:, 1].abs().max() <= limit + 0.2
    assert place[:, 1].abs().max() > 0.9 * limit


def test_erasing_zeroes_one_square_around_a_pixel_of_the_image() -> None:
    side = 5
    changed = augment(torch.ones(2000, 3, 12, 16), AugmentationConfig(erase=side), generator())
    gone = changed == 0
    assert torch.equal(gone[:, 0], gone[:, 2])
    rows, columns = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(gone[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert (int(rows.min()), int(rows.max())) == (side // 2 + 1, side)  # cut off at the border, never wholly out
    assert (int(columns.min()), int(columns.max())) == (side // 2 + 1, side)
    assert bool(gone[:, 0].any(0).all())  # every pixel is erased sometimes
