"""Data sets by name -> disjoint train / calibration / test splits."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.config import DataConfig
from model.errors import DataError
from model.image_folder import load_image_folder
from model.image_set import ImageSet
from model.images import ImageFormat
from model.parting import part, thinned, without


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Three disjoint sets: to learn from, to calibrate on, to measure on; and how files become images."""

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    image_format: ImageFormat


def load_splits(config: DataConfig, model_format: ImageFormat | None = None) -> Splits:
    """Load a data set and part it; the official test set stays whole and untouched.

    model_format: what the model takes that the images are for, where there is one already. Image folders are read as
    it says, whatever size and channels the configuration gives.

    Raises DataError: directory not given, files missing (and what to do), an unreadable image, images of another
    shape than the model's, a class without enough images.
    """
    train, test, resize = _load(config, model_format)
    if model_format is not None:
        _check_shape(config, train, model_format)
    train, test = (without(images, config.left_out) for images in (train, test))
    if len(train.class_names) < 2:
        raise DataError(f"data.left_out leaves {len(train.class_names)} classes; a classifier needs at least 2")
    train = thinned(train, config.num_images, config.split_seed)
    learning, calibration = part(train, config.calibration_fraction, config.split_seed, "calibration")
    height, width = train.images.shape[2:]
    image_format = ImageFormat(shape=(train.images.shape[1], height, width), resize=resize)
    return Splits(train=learning, calibration=calibration, test=test, image_format=image_format)


def unseen_classes(config: DataConfig) -> ImageSet:
    """The test images of the classes that are left out of all splits."""
    _, test, _ = _load(config)
    return without(test, tuple(name for name in test.class_names if name not in config.left_out))


def _load(config: DataConfig, model_format: ImageFormat | None = None) -> tuple[ImageSet, ImageSet, bool]:
    if config.name == "image-folder":
        return load_image_folder(data_directory(config), config, model_format)
    return _LOADERS[config.name](config)


def _check_shape(config: DataConfig, images: ImageSet, model_format: ImageFormat) -> None:
    if (shape := tuple(images.images.shape[1:])) != model_format.shape:
        raise DataError(f"{config.name} has images of shape {shape}; the model takes {model_format.shape}")


def data_directory(config: DataConfig) -> Path:
    """The configured directory, or LGM_DATA_DIR."""
    directory = config.directory or os.environ.get("LGM_DATA_DIR")
    if not directory:
        raise DataError("where are the data? Set LGM_DATA_DIR or data.directory to the folder of the data sets")
    return Path(directory).expanduser()


_Loader = Callable[[DataConfig], tuple[ImageSet, ImageSet, bool]]


def _torchvision(kind: str) -> _Loader:
    """torchvision's own sets: they verify files and know where to download from."""

    def load(config: DataConfig) -> tuple[ImageSet, ImageSet, bool]:
        root = data_directory(config)
        train, test = (_from_torchvision(kind, root, train=part, config=config) for part in (True, False))
        return train, test, False

    return load


def _from_torchvision(kind: str, root: Path, *, train: bool, config: DataConfig) -> ImageSet:
    from torchvision import datasets  # takes seconds to import; a server needs none of it

    try:
        loaded = getattr(datasets, kind)(str(root), train=train, download=config.download)
    except Exception as error:  # torchvision raises or asserts whatever the damaged byte leads to
        told = "point LGM_DATA_DIR or data.directory at it"
        if not config.download:
            told += ", or allow a download with data.download=true"
        raise DataError(
            f"{config.name} is not complete in {root} ({str(error) or type(error).__name__}); {told}"
        ) from None
    pixels = torch.as_tensor(loaded.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    names = tuple(name.split(" - ")[0] for name in loaded.classes)
    return ImageSet(images=pixels.contiguous(), labels=torch.as_tensor(loaded.targets).long(), class_names=names)


def _digits(config: DataConfig) -> tuple[ImageSet, ImageSet, bool]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, every fourth image a test image: small and always there."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(np.round(loaded.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    whole = ImageSet(
        images=images,
        labels=torch.from_numpy(loaded.target).long(),
        class_names=tuple(str(name) for name in loaded.target_names),
    )
    rows = torch.arange(len(whole))
    return whole.select(rows[rows % 4 != 3]), whole.select(rows[rows % 4 == 3]), False


_LOADERS: dict[str, _Loader] = {
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "digits": _digits,
}
