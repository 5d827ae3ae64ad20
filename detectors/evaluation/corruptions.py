"""Natural abnormality: noise, blur, light, geometry and loss, each at severities 1 to 5.

Letters: n images, c channels, h w pixels. Images are in [0, 1] before and after.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from detectors.evaluation.threat import AttackError

Change = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corruption:
    """One corruption. change(images, severity's parameter, generator); a parameter of 0 changes nothing.

    severities: the parameters of severity 1 to 5, in `unit`; keeps_class: whether a person still sees the class,
    so that a flag there is needless.
    """

    name: str
    change: Change
    unit: str
    severities: tuple[float, float, float, float, float]
    keeps_class: tuple[bool, bool, bool, bool, bool]


def gaussian_noise(images: Float[Tensor, "n c h w"], deviation: float, generator: torch.Generator) -> Tensor:
    """Independent normal noise on every value."""
    return images + deviation * torch.randn(images.shape, generator=generator).to(images)


def uniform_noise(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """A blend with uniform noise; a share of 1 is noise alone."""
    return torch.lerp(images, torch.rand(images.shape, generator=generator).to(images), share)


def salt_and_pepper(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """A share of the pixels, every channel at once, becomes black or white."""
    chance, value = torch.rand((2, len(images), 1, *images.shape[2:]), generator=generator).to(images)
    return torch.where(chance < share, value.round(), images)


def gaussian_blur(images: Float[Tensor, "n c h w"], width: float, generator: torch.Generator) -> Tensor:
    """A Gaussian of standard deviation width * h pixels, along rows and columns."""
    deviation = width * images.shape[2]
    if deviation == 0:
        return images
    reach = min(math.ceil(3 * deviation), min(images.shape[2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-((places / deviation) ** 2) / 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def contrast(images: Float[Tensor, "n c h w"], loss: float, generator: torch.Generator) -> Tensor:
    """Every value nearer to its image's mean by that share."""
    return torch.lerp(images, images.mean((1, 2, 3), keepdim=True), loss)


def brightness(images: Float[Tensor, "n c h w"], light: float, generator: torch.Generator) -> Tensor:
    """Light added to every value."""
    return images + light


def constant(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """A blend with one random grey level an image; a share of 1 is that grey alone."""
    return torch.lerp(
        images, torch.rand((len(images), 1, 1, 1), generator=generator).to(images).expand_as(images), share
    )


def inverted(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """A blend with the negative; a share of 1 is the negative alone."""
    return torch.lerp(images, 1 - images, share)


def rotation(images: Float[Tensor, "n c h w"], degrees: float, generator: torch.Generator) -> Tensor:
    """Turned about the centre, either way; the edge's values fill the corners.

    The sampler's coordinates run from -1 to 1 on both axes, hence the aspect on what mixes them.
    """
    aspect = images.shape[2] / images.shape[3]
    angles = math.radians(degrees) * _either_way(len(images), generator)
    cosine, sine = angles.cos(), angles.sin()
    zero = torch.zeros_like(angles)
    return _warp(images, torch.stack([cosine, -sine * aspect, zero, sine / aspect, cosine, zero], 1).view(-1, 2, 3))


def translation(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """Moved by a share of height and width, either way each; the edge's values fill the rest."""
    right, down = (2 * share * _either_way(len(images), generator) for _ in range(2))  # the grid is two units wide
    zero, one = torch.zeros_like(right), torch.ones_like(right)
    return _warp(images, torch.stack([one, zero, right, zero, one, down], 1).view(-1, 2, 3))


def occlusion(images: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Tensor:
    """A mid-grey square at a random place; its side is a share of the height."""
    height, width = images.shape[2:]
    side = min(round(share * height), height, width)

    def covered(length: int) -> Tensor:
        first = (torch.rand((len(images), 1), generator=generator) * (length - side + 1)).long()
        place = torch.arange(length)
        return ((place >= first) & (place < first + side)).to(images.device)

    hidden = covered(height).view(-1, 1, height, 1) & covered(width).view(-1, 1, 1, width)
    return torch.where(hidden, torch.full_like(images, 0.5), images)


MILD = (True, True, False, False, False)
FAINT = (True, False, False, False, False)

_ROWS = (
    Corruption(
        name="gaussian-noise",
        change=gaussian_noise,
        unit="standard deviation",
        severities=(0.03, 0.08, 0.2, 0.4, 0.8),
        keeps_class=MILD,
    ),
    Corruption(
        name="uniform-noise",
        change=uniform_noise,
        unit="share of noise",
        severities=(0.1, 0.25, 0.5, 0.75, 1.0),
        keeps_class=MILD,
    ),
    Corruption(
        name="salt-and-pepper",
        change=salt_and_pepper,
        unit="share of pixels",
        severities=(0.01, 0.03, 0.1, 0.25, 0.5),
        keeps_class=MILD,
    ),
    Corruption(
        name="gaussian-blur",
        change=gaussian_blur,
        unit="standard deviation / height",
        severities=(0.02, 0.04, 0.07, 0.12, 0.2),
        keeps_class=MILD,
    ),
    Corruption(
        name="contrast",
        change=contrast,
        unit="share lost",
        severities=(0.2, 0.4, 0.7, 0.85, 0.95),
        keeps_class=MILD,
    ),
    Corruption(
        name="brightness",
        change=brightness,
        unit="added to each value",
        severities=(0.05, 0.15, 0.3, 0.5, 0.8),
        keeps_class=MILD,
    ),
    Corruption(
        name="rotation",
        change=rotation,
        unit="degrees",
        severities=(5.0, 15.0, 30.0, 60.0, 90.0),
        keeps_class=MILD,
    ),
    Corruption(
        name="translation",
        change=translation,
        unit="share of height and width",
        severities=(0.04, 0.08, 0.15, 0.3, 0.5),
        keeps_class=MILD,
    ),
    Corruption(
        name="occlusion",
        change=occlusion,
        unit="side / height",
        severities=(0.1, 0.2, 0.35, 0.5, 0.75),
        keeps_class=MILD,
    ),
    Corruption(
        name="constant",
        change=constant,
        unit="share of grey",
        severities=(0.15, 0.4, 0.65, 0.85, 1.0),
        keeps_class=FAINT,
    ),
    Corruption(
        name="inverted",
        change=inverted,
        unit="share of the negative",
        severities=(0.1, 0.3, 0.5, 0.75, 1.0),
        keeps_class=FAINT,
    ),
)
CORRUPTIONS: dict[str, Corruption] = {row.name: row for row in _ROWS}


def check_corruption(name: str, severity: int) -> Corruption:
    """The corruption of that name. Raises AttackError: unknown name (with those that exist), severity not 1 to 5."""
    if name not in CORRUPTIONS:
        raise AttackError(f"unknown corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise AttackError(f"severity of {name} must be 1 to 5, got {severity}")
    return CORRUPTIONS[name]


def corrupt(name: str, images: Float[Tensor, "n c h w"], *, severity: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
    """The images corrupted, clipped to [0, 1]; the same for the same seed. Raises AttackError."""
    corruption = check_corruption(name, severity)
    generator = torch.Generator().manual_seed(seed)
    return corruption.change(images, corruption.severities[severity - 1], generator).clamp(0, 1)


def _either_way(number: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    return torch.randint(2, (number,), generator=generator).float() * 2 - 1


def _warp(images: Float[Tensor, "n c h w"], maps: Float[Tensor, "n 2 3"]) -> Tensor:
    """Each pixel taken from where its map points, in a grid from -1 to 1."""
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
