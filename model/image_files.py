"""Image files on a disk: which there are, and what they hold."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from model.errors import DataError, ImageError
from model.images import ImageFormat, ImageSizeError, decode_image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder but hidden ones, in a stable order; links are followed.

    A link to nothing is among them, for whoever reads it to tell of. Raises DataError for a folder that cannot be
    read.
    """
    return sorted(path for path in _below(folder) if path.is_file() or (path.is_symlink() and not path.exists()))


def _below(folder: Path) -> Iterator[Path]:
    """What has an image's name and is not hidden; every folder once, however many links lead there."""
    seen = {folder.resolve()}
    for where, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = {Path(where, name).resolve(): name for name in sorted(folders, reverse=True) if name[0] != "."}
        folders[:] = [name for real, name in inside.items() if real not in seen]
        seen.update(inside)
        yield from (Path(where, name) for name in names if name[0] != "." and Path(name).suffix.lower() in SUFFIXES)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")


def read_images(paths: Sequence[Path], image_format: ImageFormat) -> UInt8[Tensor, "n c h w"]:
    """Decode files, several at a time. Raises DataError naming the first that cannot be used."""
    images = torch.empty((len(paths), *image_format.shape), dtype=torch.uint8)

    def read(row: int) -> None:
        try:
            images[row] = read_image(paths[row], image_format)
        except ImageSizeError as error:
            raise DataError(f"{error}; set data.image_size to resize all images to one size") from None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(paths))):
            pass
    return images


def read_image(path: Path, image_format: ImageFormat) -> UInt8[Tensor, "c h w"]:
    """Decode one file. Raises ImageError naming it."""
    try:
        return decode_image(path.read_bytes(), image_format)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None
