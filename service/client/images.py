"""What callers call images -> files and tensors to send, each with its place among them.

Legend: n images, c channels, h w pixels.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from service.client.answers import FailedPrediction, Fault
from service.client.errors import InputError

Array = NDArray[Any]
Image = str | Path | bytes | PillowImage.Image | Array
Images = Image | Iterable[Image]

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
RGB_MODES = frozenset({"CMYK", "YCbCr", "HSV", "RGBX", "PA"})  # eight bits a channel, in colours that PNG lacks


@dataclass(frozen=True, slots=True)
class File:
    """An image file's bytes."""

    position: int
    source: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """One image (c, h, w): uint8, or float32 in [0, 1]."""

    position: int
    source: str
    content: Array


@dataclass(frozen=True, slots=True)
class Unsendable:
    """An image that is not worth a request, and why."""

    position: int
    failed: FailedPrediction


Entry = File | Tensor | Unsendable


def entries(images: Images) -> Iterator[Entry]:
    """One at a time, files being read when their turn comes. Raises InputError for what is no image at all."""
    position = 0
    for image in _each(images):
        for entry in _entries(image, position):
            yield entry
            position += 1


def _each(images: Images) -> Iterable[Image]:
    if isinstance(images, (str, Path, bytes, PillowImage.Image, np.ndarray)):
        return (images,)
    if not isinstance(images, Iterable) or isinstance(images, dict):
        raise InputError(_not_an_image(images))
    return images


def _entries(image: Image, position: int) -> Iterable[Entry]:
    match image:
        case str() | Path():
            return (_from_path(Path(image), position),)
        case bytes():
            return (File(position, f"images[{position}]", image),)
        case PillowImage.Image():
            return (_from_pillow(image, position),)
        case np.ndarray():
            return _from_array(image, position)
    raise InputError(_not_an_image(image))


def _not_an_image(image: object) -> str:
    return f"an image is a path, a file's bytes, a Pillow image or an array, not {type(image).__name__}"


def _from_path(path: Path, position: int) -> Entry:
    try:
        return File(position, str(path), path.read_bytes())
    except (OSError, ValueError) as error:  # ValueError for a path that no file can have
        return _unsendable(position, str(path), f"cannot be read: {getattr(error, 'strerror', error)}")


def _from_pillow(image: PillowImage.Image, position: int) -> Entry:
    source = f"images[{position}]"
    if image.mode not in PNG_MODES | RGB_MODES:
        detail = f"image mode {image.mode!r} is not supported; send 8 bits a channel, grey or colour"
        return _unsendable(position, source, detail)
    try:
        return File(position, source, _to_png(image))
    except Exception as error:  # Pillow reads a file now, and raises whatever the damaged byte leads to
        return _unsendable(position, source, f"image is empty, closed, truncated or damaged: {error}")


def _to_png(image: PillowImage.Image) -> bytes:
    """Without loss, upright as a file with its EXIF orientation would be; colours that PNG lacks become RGB."""
    upright = ImageOps.exif_transpose(image)
    buffer = io.BytesIO()
    sendable = upright.convert("RGB") if upright.mode in RGB_MODES else upright
    sendable.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _unsendable(position: int, source: str, detail: str) -> Unsendable:
    return Unsendable(position, FailedPrediction(error=Fault(field=source, detail=detail)))


def _from_array(array: Array, position: int) -> Iterator[Entry]:
    if array.ndim not in (3, 4) or array.size == 0:
        raise InputError(f"an array of images is (c, h, w) or (n, c, h, w) and not empty, got {array.shape}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"an array of images holds floats in [0, 1] or uint8, got {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, and told of below
        exact = array.astype(np.uint8 if array.dtype == np.uint8 else np.float32, copy=False)
    batch = exact if exact.ndim == 4 else exact[None]
    sound = batch.dtype == np.uint8 or bool(batch.min() >= 0 and batch.max() <= 1)  # false for NaN as well
    for offset, image in enumerate(batch):
        source = f"images[{position + offset}]"
        if sound or (detail := _out_of_range(image)) is None:
            yield Tensor(position + offset, source, image)
        else:
            yield _unsendable(position + offset, source, detail)


def _out_of_range(image: Array) -> str | None:
    low, high = image.min(), image.max()
    if not np.isfinite(low) or not np.isfinite(high):
        return "values must be finite; NaN and Infinity are not"
    if low < 0:
        return f"values must lie in [0, 1]; the least is {low:.6g}"
    if high > 1:
        hint = "divide by 255, or send uint8; " if high >= 2 else ""
        return f"values must lie in [0, 1]; {hint}the greatest is {str(high).removesuffix('.0')}"
    return None
