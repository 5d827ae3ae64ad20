"""Folders of image files, one a class -> image sets; decoded once into memory, which suits a few gigabytes."""

from pathlib import Path
from typing import NamedTuple

import torch

from model.config import DataConfig
from model.errors import DataError, ImageError
from model.image_files import SUFFIXES, image_files
from model.image_set import ImageSet
from model.image_tensors import read_images
from model.images import ImageFormat, native_format
from model.parting import part_by_content

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
TEST_SHARE = 0.2  # of an image folder that has no test set of its own


class _Reading(NamedTuple):
    """How files become images, and the file whose size that is, where neither a model nor a configuration says."""

    image_format: ImageFormat
    sized_by: Path | None = None


def load_image_folder(
    root: Path, config: DataConfig, image_format: ImageFormat | None = None
) -> tuple[ImageSet, ImageSet, bool]:
    """One folder a class, under train/ and test/; without these about a fifth of each class becomes the test set.

    image_format: of the model that the images are for, which then decides on their size and channels.

    Returns the training images, the test images, and whether they were resized.
    """
    reading = None if image_format is None else _Reading(image_format)
    if (root / "train").is_dir() and (root / "test").is_dir():
        names = _class_names(root / "train")
        if (found := _class_names(root / "test")) != names:
            raise DataError(f"{root}: train/ has classes {', '.join(names)}; test/ has {', '.join(found)}")
        reading = reading or _folder_reading(root / "train", names, config)
        train = _read_folder(root / "train", names, reading)
        return train, _read_folder(root / "test", names, reading), reading.image_format.resize
    names = _class_names(root)
    if SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataError(
            f"{root} has {', '.join(names)}: an image folder has train/ and test/, so rename or link one of them, "
            "or it has one folder a class"
        )
    reading = reading or _folder_reading(root, names, config)
    train, test = part_by_content(_read_folder(root, names, reading), TEST_SHARE, config.split_seed)
    return train, test, reading.image_format.resize


def _class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; an image folder has one folder a class, or train/ and test/")
    names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folders; a classifier needs at least 2")
    return names


def _folder_reading(root: Path, names: tuple[str, ...], config: DataConfig) -> _Reading:
    """Size of the configuration, to which all are resized, or of the first image; in colour where any image is."""
    files = [file for name in names for file in image_files(root / name)]
    if not files:
        raise DataError(f"{root} holds no image files ({', '.join(sorted(SUFFIXES))})")
    try:
        _, height, width = native_format(files[0].read_bytes()).shape
    except (ImageError, OSError) as error:
        raise DataError(f"{files[0]}: {error}") from None
    channels = config.num_channels or (3 if any(map(_is_coloured, files)) else 1)  # a few photographs are grey
    if config.image_size is not None:
        return _Reading(ImageFormat(shape=(channels, config.image_size, config.image_size), resize=True))
    return _Reading(ImageFormat(shape=(channels, height, width)), sized_by=files[0])


def _is_coloured(file: Path) -> bool:
    try:
        return native_format(file.read_bytes()).shape[0] == 3
    except (ImageError, OSError):  # told of by whoever decodes it
        return False


def _read_folder(root: Path, class_names: tuple[str, ...], reading: _Reading) -> ImageSet:
    """Decode every image of every class folder. Raises DataError naming the file that cannot be used."""
    paths, labels = [], []
    for index, name in enumerate(class_names):
        found = image_files(root / name)
        if not found:
            raise DataError(f"{root / name} holds no image files")
        paths += found
        labels += [index] * len(found)
    images = read_images(paths, reading.image_format, sized_by=reading.sized_by)
    return ImageSet(images=images, labels=torch.tensor(labels), class_names=class_names)
