"""What an evaluation runs on: the bundle, its test images and the foreign sets, all checked to fit.

Images of a data set are in memory; those of a store are read when they are sliced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detectors.bundle import load_bundle
from detectors.commands.options import data_for
from detectors.evaluation.attacks import check_num_classes
from detectors.evaluation.settings import EvaluationError, Settings, Task
from detectors.evaluation.stored import Columns, StoredImages, StoredSet, inverted, noise, stored_set
from detectors.manifest import Manifest, load_manifest
from detectors.measuring import abnormal_images, foreign_images
from detectors.screener import Screener
from model.config import DataConfig
from model.data import load_splits
from model.errors import DataError
from model.image_set import ImageSet, digest_of
from model.images import ImageFormat

TestSet = ImageSet | StoredSet
Images = Tensor | StoredImages
LOOKS = {"inverted": inverted, "noise": noise}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A bundle and what it is judged on; test images and foreign images are uint8."""

    screener: Screener
    manifest: Manifest
    bundle: Path
    test: TestSet
    foreign: dict[str, Images]
    settings: Settings

    @property
    def facts(self) -> tuple[str, ...]:
        """What figures depend on beside the settings: the bundle's version and the images' digests."""
        return self.manifest.version, self.test.digest(), *map(_digest, self.foreign.values())

    def sample(self, seed: int) -> TestSet:
        """The test images of a seed: all, or `limit` drawn by it, in the data set's order."""
        return self.test.select(_drawn(len(self.test), self.settings.limit, seed))

    def images_of(self, task: Task, sample: TestSet) -> Images:
        """uint8 images (n, c, h, w) that a task starts from."""
        if task.group != "foreign":
            return sample.images
        images = self.foreign[task.name]
        rows = _drawn(len(images), self.settings.limit, task.seed)
        return images.select(rows) if isinstance(images, StoredImages) else images[rows]


def load_inputs(
    bundle: Path,
    settings: Settings,
    *,
    data_dir: Path | None = None,
    stored: Columns | None = None,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Load all of it. stored: `settings.data` is the address of a store, whose Parquet files have these columns.

    Raises BundleError, DataError (images or classes that do not fit the bundle, foreign sets that do not exist),
    EvaluationError (a limit above the number of test images), AttackError (too few classes for an attack).
    """
    screener, manifest = load_bundle(bundle, device), load_manifest(bundle)
    if stored is None:
        data = data_for(manifest, settings.data, data_dir)
        test: TestSet = load_splits(data, screener.image_format).test
    else:
        data = data_for(manifest, "image-folder", data_dir)
        test = stored_set(settings.data, screener.labels, screener.image_format, stored)
    _check_fits(screener, test, settings)
    foreign = {name: _foreign(name, data, test, screener.image_format) for name in settings.foreign}
    _check_foreign(test, foreign)
    return Inputs(
        screener=screener,
        manifest=manifest,
        bundle=bundle,
        test=test,
        foreign=foreign,
        settings=settings,
    )


def _foreign(name: str, data: DataConfig, test: TestSet, image_format: ImageFormat) -> Images:
    if isinstance(test, ImageSet):
        return abnormal_images(name, data, test, image_format)
    if name in LOOKS:
        return replace(test.images, look=LOOKS[name])
    return foreign_images(name, data, image_format)


def _check_foreign(test: TestSet, foreign: Mapping[str, Images]) -> None:
    for name, images in foreign.items():
        if isinstance(images, Tensor) and isinstance(test.images, Tensor) and torch.equal(images, test.images):
            raise EvaluationError(f"foreign: {name} are the test images themselves, not images of no class")


def _digest(images: Images) -> str:
    """What is read from the store of the test images changes with their digest."""
    return str(len(images)) if isinstance(images, StoredImages) else digest_of(images)


def _drawn(count: int, limit: int | None, seed: int) -> Tensor:
    if limit is None or limit >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _check_fits(screener: Screener, test: TestSet, settings: Settings) -> None:
    if test.class_names != screener.labels:
        raise DataError(
            f"{settings.data} has classes {', '.join(test.class_names)}; the bundle has {', '.join(screener.labels)}"
        )
    for name in settings.attacks:
        check_num_classes(name, len(screener.labels))
    if settings.limit is not None and settings.limit > len(test):
        raise EvaluationError(f"limit is {settings.limit}; {settings.data} has {len(test)} test images")
