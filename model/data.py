"""Data sets -> uint8 images, labels and names, in disjoint train / calibration / test splits.

Small sets are held in memory as they are; image folders are decoded once into memory, which
suits sets up to a few gigabytes.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from model.config import DataConfig
from model.errors import DataError, ImageError
from model.image_files import SUFFIXES, image_files
from model.image_tensors import read_images
from model.images import ImageFormat, native_format

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
TEST_SHARE = 0.2  # of an image folder that has no test set of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """Images (n, c, h, w) uint8, labels (n,) int64, and the names of the k classes."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int[Tensor, " m"]) -> "ImageSet":
        """Those rows."""
        return ImageSet(images=self.images[indices], labels=self.labels[indices], class_names=self.class_names)

    def fingerprints(self) -> Int[Tensor, " n"]:
        """64 bits of BLAKE2 of each image's pixels: tells whether an image was seen before."""
        rows = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in self.images.numpy())
        return torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.int64).copy())

    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels: names a split so that another cannot be taken for it."""
        return digest_of(self.images, self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Three disjoint sets: to learn from, to calibrate on, to measure on; and how files become images."""

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    image_format: ImageFormat


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 over the first one's shape and the bytes of all."""
    digest = hashlib.sha256(repr(tuple(tensors[0].shape)).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_unit(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """uint8 -> float32 in [0, 1]."""
    return images.float().div_(255)


def load_splits(config: DataConfig) -> Splits:
    """Load a data set and part it; the official test set stays whole and untouched.

    Raises DataError: directory not given, files missing (and what to do), an unreadable image, a class
    without enough images.
    """
    train, test, resize = _LOADERS[config.name](config)
    train, test = (_without(images, config.left_out) for images in (train, test))
    if len(train.class_names) < 2:
        raise DataError(f"data.left_out leaves {len(train.class_names)} classes; a classifier needs at least 2")
    train = _thinned(train, config.num_images, config.split_seed)
    learning, calibration = _part(train, config.calibration_fraction, config.split_seed, "calibration")
    height, width = train.images.shape[2:]
    image_format = ImageFormat(shape=(train.images.shape[1], height, width), resize=resize)
    return Splits(train=learning, calibration=calibration, test=test, image_format=image_format)


def unseen_classes(config: DataConfig) -> ImageSet:
    """The test images of the classes that are left out of all splits."""
    _, test, _ = _LOADERS[config.name](config)
    return _without(test, tuple(name for name in test.class_names if name not in config.left_out))


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets, one after the other."""
    return ImageSet(
        images=torch.cat([first.images, second.images]),
        labels=torch.cat([first.labels, second.labels]),
        class_names=first.class_names,
    )


def data_directory(config: DataConfig) -> Path:
    """The configured directory, or LGM_DATA_DIR."""
    directory = config.directory or os.environ.get("LGM_DATA_DIR")
    if not directory:
        raise DataError("where are the data? Set LGM_DATA_DIR or data.directory to the folder of the data sets")
    return Path(directory).expanduser()


def _part(images: ImageSet, fraction: float, seed: int, purpose: str) -> tuple[ImageSet, ImageSet]:
    """Part each class by the same share, so that every class has its images for the purpose."""
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"class {name!r} has {len(members)} images: too few to hold {fraction:.0%} back for {purpose}"
            )
        order = members[torch.randperm(len(members), generator=generator)]
        held.append(order[:count])
        kept.append(order[count:])
    return images.select(torch.cat(kept).sort().values), images.select(torch.cat(held).sort().values)


def _part_by_content(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Part each class by what its images hold, about so many: those added later move none, and doubles stay together.

    Both sides have an image of every class.
    """
    key = seed.to_bytes(8, "little")
    texts = images.fingerprints().numpy().tobytes()
    digests = (hashlib.blake2b(texts[i : i + 8], digest_size=8, key=key).digest() for i in range(0, len(texts), 8))
    ranks = torch.tensor([int.from_bytes(digest, "little") / 2**64 for digest in digests], dtype=torch.float64)
    held = ranks < share
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        if len(set(ranks[members].tolist())) < 2:
            raise DataError(
                f"class {name!r} has {len(members)} images: too few to hold {share:.0%} back for the test set"
            )
        order = members[ranks[members].argsort()]
        held[ranks == ranks[order[0]]] = True
        held[ranks == ranks[order[-1]]] = False
    return images.select(torch.nonzero(~held).squeeze(1)), images.select(torch.nonzero(held).squeeze(1))


def _without(images: ImageSet, left_out: tuple[str, ...]) -> ImageSet:
    """The images of the other classes, which keep their order. Raises DataError for a class that is not there."""
    for name in left_out:
        if name not in images.class_names:
            raise DataError(f"data.left_out: there is no class {name!r}; there are {', '.join(images.class_names)}")
    if not left_out:
        return images
    kept = [index for index, name in enumerate(images.class_names) if name not in left_out]
    renamed = torch.full((len(images.class_names),), -1)
    renamed[torch.tensor(kept, dtype=torch.int64)] = torch.arange(len(kept))
    labels = renamed[images.labels]
    rows = torch.nonzero(labels >= 0).squeeze(1)
    names = tuple(images.class_names[index] for index in kept)
    return ImageSet(images=images.images[rows], labels=labels[rows], class_names=names)


def _thinned(images: ImageSet, num_images: int | None, seed: int) -> ImageSet:
    """So many of them, of each class the same share. Raises DataError where a class would be left with none."""
    if num_images is None or num_images >= len(images):
        return images
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        count = round(num_images / len(images) * len(members))
        if count == 0:
            raise DataError(f"data.num_images: {num_images} of {len(images)} images leave class {name!r} without any")
        kept.append(members[torch.randperm(len(members), generator=generator)][:count])
    return images.select(torch.cat(kept).sort().values)


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


def _image_folder(config: DataConfig) -> tuple[ImageSet, ImageSet, bool]:
    """One folder a class, under train/ and test/; without these about a fifth of each class becomes the test set."""
    root = data_directory(config)
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
    train, test = _part_by_content(read_folder(root, names, image_format), TEST_SHARE, config.split_seed)
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


_LOADERS: dict[str, _Loader] = {
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "digits": _digits,
    "image-folder": _image_folder,
}
