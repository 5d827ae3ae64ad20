"""What an evaluation runs on: the bundle, its test images and the foreign sets, all checked to fit."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detectors.bundle import load_bundle
from detectors.evaluation.settings import EvaluationError, Settings, Task
from detectors.manifest import Manifest, load_manifest
from detectors.measuring import abnormal_images
from detectors.screener import Screener
from model.config import DataConfig, parse_data_config
from model.data import ImageSet, load_splits, to_unit
from model.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A bundle and what it is judged on; test images and foreign images are uint8."""

    screener: Screener
    manifest: Manifest
    bundle: Path
    test: ImageSet
    foreign: dict[str, Tensor]
    settings: Settings

    @property
    def facts(self) -> tuple[str, ...]:
        """What figures depend on beside the settings: the bundle's version and the images' digest."""
        return self.manifest.version, self.test.digest(), *(str(len(images)) for images in self.foreign.values())

    def sample(self, seed: int) -> ImageSet:
        """The test images of a seed: all, or `limit` drawn by it, in the data set's order."""
        return self.test.select(_drawn(len(self.test), self.settings.limit, seed))

    def images_of(self, task: Task, sample: ImageSet) -> Tensor:
        """uint8 images (n, c, h, w) that a task starts from."""
        if task.group != "foreign":
            return sample.images
        images = self.foreign[task.name]
        return images[_drawn(len(images), self.settings.limit, task.seed)]


def load_inputs(
    bundle: Path, settings: Settings, *, data_dir: Path | None = None, device: torch.device | str = "cpu"
) -> Inputs:
    """Load all of it.

    Raises BundleError, DataError (images or classes that do not fit the bundle, foreign sets that do not exist),
    EvaluationError (a limit above the number of test images).
    """
    screener = load_bundle(bundle, device)
    data = _data_config(screener, settings.data, data_dir)
    test = load_splits(data).test
    _check_fits(screener, test, settings)
    foreign = {name: abnormal_images(name, data, test, screener.image_format) for name in settings.foreign}
    return Inputs(
        screener=screener,
        manifest=load_manifest(bundle),
        bundle=bundle,
        test=test,
        foreign=foreign,
        settings=settings,
    )


def batch(images: Tensor, start: int, size: int) -> Tensor:
    """One batch as floats in [0, 1]."""
    return to_unit(images[start : start + size])


def _drawn(count: int, limit: int | None, seed: int) -> Tensor:
    if limit is None or limit >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _data_config(screener: Screener, name: str, directory: Path | None) -> DataConfig:
    """Folders of images are brought to the bundle's channels, and to its size where it resizes."""
    config = parse_data_config({"name": name, "directory": None if directory is None else str(directory)})
    if config.name != "image-folder":
        return config
    channels, height, _ = screener.image_format.shape
    size = height if screener.image_format.resize else None
    return replace(config, num_channels=1 if channels == 1 else 3, image_size=size)


def _check_fits(screener: Screener, test: ImageSet, settings: Settings) -> None:
    if tuple(test.images.shape[1:]) != screener.image_format.shape:
        raise DataError(
            f"{settings.data} has images of shape {tuple(test.images.shape[1:])}; "
            f"the bundle takes {screener.image_format.shape}"
        )
    if test.class_names != screener.labels:
        raise DataError(
            f"{settings.data} has classes {', '.join(test.class_names)}; the bundle has {', '.join(screener.labels)}"
        )
    if settings.limit is not None and settings.limit > len(test):
        raise EvaluationError(f"limit is {settings.limit}; {settings.data} has {len(test)} test images")
