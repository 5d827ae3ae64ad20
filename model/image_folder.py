"""Folders of image files, one a class -> image sets; decoded once into memory, which suits a few gigabytes."""

from pathlib import Path

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


def load_image_folder(root: Path, config: DataConfig) -> tuple[ImageSet, ImageSet, bool]:
    """One folder a class, under train/ and test/; without these about a fifth of each class becomes the test set.

    Returns the training images, the test images, and whether they were resized.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        names = _class_names(root / "train")
        if (found := _class_names(root / "test")) != names:
            raise DataError(f"{root}: train/ has classes {', '.join(names)}; test/ has {', '.join(found)}")
        image_format = _folder_format(root / "train", names, config)
        train = read_folder(root / "train", names, image_format)
        return train, read_folder(root / "test", names, image_format), image_format.resize
    names = _class_names(root)
    if SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataError(
            f"{root} has {', '.join(names)}: an image folder has train/ and test/, so rename or link one of them, "
            "or it has one folder a class"
        )
    image_format = _folder_format(root, names, config)
    train, test = part_by_content(read_folder(root, names, image_format), TEST_SHARE, config.split_seed)
    return train, test, image_format.resize


def _class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; an image folder has one folder a class, or train/ and test/")
    names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folders; a classifier needs at least 2")
    return names


def _folder_format(root: Path, names: tuple[str, ...], config: DataConfig) -> ImageFormat:
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
        height = width = config.image_size
    return ImageFormat(shape=(channels, height, width), resize=config.image_size is not None)


def _is_coloured(file: Path) -> bool:
    try:
        return native_format(file.read_bytes()).shape[0] == 3
    except (ImageError, OSError):  # told of by whoever decodes it
        return False


def read_folder(root: Path, class_names: tuple[str, ...], image_format: ImageFormat) -> ImageSet:
    """Decode every image of every class folder. Raises DataError naming the file that cannot be used."""
    paths, labels = [], []
    for index, name in enumerate(class_names):
        found = image_files(root / name)
        if not found:
            raise DataError(f"{root / name} holds no image files")
        paths += found
        labels += [index] * len(found)
    return ImageSet(images=read_images(paths, image_format), labels=torch.tensor(labels), class_names=class_names)
