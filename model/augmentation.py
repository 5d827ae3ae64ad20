"""Random changes of a batch of training images, on the images' own device, from a given generator."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import AugmentationConfig
from model.part import Part


def augment(
    images: Float[Tensor, "n c h w"],
    config: AugmentationConfig,
    generator: torch.Generator,
    part: Part | None = None,
) -> Float[Tensor, "n c h w"]:
    """Affine change, padded random crop, mirror, erased square: each only where the configuration asks for it.

    part: which rows of a batch the images are; all of it where not given.
    """
    part = part or Part.whole(len(images))
    if config.rotation or config.translation or config.scale or config.shear:
        images = _affine(images, config, part, generator)
    if config.pad:
        images = _crop(images, config.pad, part, generator)
    if config.mirror:
        flipped = part.rand(generator=generator) < 0.5
        images = torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
    if config.erase:
        images = _erase(images, config.erase, part, generator)
    return images


def _affine(
    images: Float[Tensor, "n c h w"], config: AugmentationConfig, part: Part, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Rotation, shear, scale and shift by bilinear sampling; outside is zero.

    The sampler's coordinates run from -1 to 1 on both axes, hence the aspect on what mixes them.
    """
    aspect = images.shape[2] / images.shape[3]
    draws = part.rand(5, generator=generator).mul_(2).sub_(1)
    angle = draws[0] * math.radians(config.rotation)
    shear = torch.tan(draws[1] * math.radians(config.shear))
    zoom = 1 + draws[2] * config.scale
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack(
        [
            torch.stack([cosine, (cosine * shear - sine) * aspect, 2 * config.translation * draws[3]], 1),
            torch.stack([sine / aspect, sine * shear + cosine, 2 * config.translation * draws[4]], 1),
        ],
        1,
    )
    grid = nn.functional.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _crop(
    images: Float[Tensor, "n c h w"], pad: int, part: Part, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Crop each image at its own place out of its zero-padded self, by one gather."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (pad, pad, pad, pad))
    offsets = part.randint(2 * pad + 1, 2, generator=generator).unsqueeze(2)
    rows = (offsets[0] + torch.arange(height)).to(images.device)
    columns = (offsets[1] + torch.arange(width)).to(images.device)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def _erase(
    images: Float[Tensor, "n c h w"], side: int, part: Part, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Zero a square around a pixel of each image; at the border part of it falls outside, as in the paper."""
    height, width = images.shape[2:]
    centres = part.rand(2, generator=generator).unsqueeze(2) * torch.tensor([height, width]).view(2, 1, 1)
    first = centres.long() - side // 2
    rows, columns = torch.arange(height) - first[0], torch.arange(width) - first[1]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    inside = inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1).to(images.device), 0.0)
