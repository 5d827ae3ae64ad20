"""What a screener is worth on images that nothing was fitted on: accuracy, and the shares that it flags."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from detectors.evidence_batches import batches
from detectors.screener import Screener, Verdicts
from model.config import DataConfig, parse_data_config
from model.data import load_splits
from model.errors import DataError
from model.image_files import image_files
from model.image_set import ImageSet
from model.image_tensors import read_image
from model.images import ImageFormat

OF_THE_TEST_SET = ("noise", "inverted")  # made of its images, or in their shape
DATA_SETS: tuple[str, ...] = get_args(DataConfig.__annotations__["name"])
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share of images with its exact (Clopper-Pearson) 95 % interval."""

    num_images: int
    num_flagged: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """num_flagged / num_images."""
        return self.num_flagged / self.num_images


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Figures on test images: accuracy, and the shares flagged overall, per predicted class, and per foreign set."""

    num_images: int
    accuracy: float
    false_alarms: Rate
    false_alarms_by_class: dict[str, Rate]
    abnormal: dict[str, Rate]


def measure(screener: Screener, test: ImageSet, abnormal: dict[str, Tensor], progress: Progress) -> Measured:
    """Accuracy and flagged shares on test images and on uint8 images that belong to no class."""
    total, done = len(test) + sum(map(len, abnormal.values())), 0

    def screen_all(images: Tensor) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
        nonlocal done
        said: list[Verdicts] = []
        for batch in batches(images):
            said.append(screener.screen(batch))
            done += len(batch)
            progress(done, total)
        return torch.cat([v.class_index for v in said]).cpu(), torch.cat([v.flagged for v in said]).cpu()

    class_index, flagged = screen_all(test.images)
    return Measured(
        num_images=len(test),
        accuracy=float((class_index == test.labels).double().mean()),
        false_alarms=rate(flagged),
        false_alarms_by_class={
            name: rate(flagged[class_index == index]) for index, name in enumerate(screener.labels)
        },
        abnormal={name: rate(screen_all(images)[1]) for name, images in abnormal.items()},
    )


def rate(flagged: Bool[Tensor, " n"]) -> Rate:
    """The flagged share with its exact binomial 95 % interval; of no image at all, the interval is [0, 1]."""
    from scipy.stats import binomtest  # of the train extra; a server never measures

    count, hits = len(flagged), int(flagged.sum())
    interval = binomtest(hits, count).proportion_ci(method="exact") if count else (0.0, 1.0)
    return Rate(num_images=count, num_flagged=hits, low=float(interval[0]), high=float(interval[1]))


def check_abnormal(name: str) -> None:
    """Raises DataError unless `abnormal_images` knows the name, before anything is loaded."""
    if name not in (*OF_THE_TEST_SET, *DATA_SETS) and not (Path(name).is_dir() and image_files(Path(name))):
        raise DataError(f"abnormal set {name!r} is neither noise, inverted, a data set's name nor a folder of images")


def abnormal_images(name: str, data: DataConfig, test: ImageSet, image_format: ImageFormat) -> Tensor:
    """uint8 images of no class.

    "noise" (uniform), "inverted" (the test images), another data set's test images, or those of a folder.

    Raises DataError: an unknown name, or images of another shape.
    """
    check_abnormal(name)
    if name == "inverted":
        return 255 - test.images
    if name == "noise":
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, test.images.shape, dtype=torch.uint8, generator=generator)
    return foreign_images(name, data, image_format)


def foreign_images(name: str, data: DataConfig, image_format: ImageFormat) -> Tensor:
    """uint8 images of another data set's test part, or of a folder. Raises as `abnormal_images` does.

    A named set lies beside the data, but not inside a folder of images, which is of that set alone.
    """
    check_abnormal(name)
    if name not in DATA_SETS:
        return _mixed(torch.stack([read_image(path, image_format) for path in image_files(Path(name))]))
    directory = data.directory if data.name != "image-folder" or name == data.name else None
    foreign = load_splits(parse_data_config({"name": name, "directory": directory}), image_format).test.images
    return _mixed(foreign) if name == "image-folder" else foreign


def _mixed(images: Tensor) -> Tensor:
    """Files come class by class: who takes the first so many must not take the first class."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
