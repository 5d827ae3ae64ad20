"""Image files -> uint8 tensors of a network's shape."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from model.errors import DataError, ImageError
from model.images import MAX_PIXELS, ImageFormat, ImageSizeError, decode_pixels, native_format


def decode_image(data: bytes, image_format: ImageFormat, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "c h w"]:
    """As decode_pixels, as a tensor."""
    return torch.from_numpy(decode_pixels(data, image_format, max_pixels=max_pixels))


def read_images(
    paths: Sequence[Path], image_format: ImageFormat, *, sized_by: Path | None = None
) -> UInt8[Tensor, "n c h w"]:
    """Decode files, several at a time. Raises DataError naming the first that cannot be used.

    sized_by: the file that the format's size was taken from, where there is no model yet.
    """
    images = torch.empty((len(paths), *image_format.shape), dtype=torch.uint8)

    def read(row: int) -> None:
        try:
            images[row] = read_image(paths[row], image_format)
        except ImageSizeError:
            if sized_by is None:
                raise
            raise DataError(_unlike(paths[row], sized_by)) from None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(paths))):
            pass
    return images


def _unlike(path: Path, first: Path) -> str:
    (_, height, width), (_, first_height, first_width) = (
        native_format(file.read_bytes()).shape for file in (path, first)
    )
    return (
        f"{path}: image is {width} x {height} pixels, but {first} is {first_width} x {first_height}; "
        "set data.image_size to resize all images to one size"
    )


def read_image(path: Path, image_format: ImageFormat) -> UInt8[Tensor, "c h w"]:
    """Decode one file. Raises ImageError naming it."""
    try:
        return decode_image(path.read_bytes(), image_format)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None
