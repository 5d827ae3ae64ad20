"""A trained checkpoint and clean data -> a calibrated screener, and what it is worth on data it never saw."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.base import Detector, Evidence, gather_evidence
from detectors.calibration import ConformalCalibration, check_rate
from detectors.likelihood import LikelihoodDetector
from detectors.screener import Screener, Verdicts
from model.checkpoint import Checkpoint
from model.config import DataConfig, parse_data_config
from model.data import ImageSet, Splits, image_files, join, load_splits, read_image, to_unit
from model.errors import CalibrationError, CheckpointError, DataError
from model.images import ImageFormat
from model.network import Network

BATCH_SIZE = 256
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


def fit_screener(
    checkpoint: Checkpoint, data: DataConfig, *, false_alarm_rate: float, name: str, device: torch.device
) -> tuple[Screener, Splits, ImageSet]:
    """Calibrate the checkpoint's network on clean images that it was never trained on.

    Those are all images of the data set outside its test set less the ones trained on (told by their
    fingerprints). Returns the screener, the data's splits and the calibration images.

    Raises CheckpointError: not finished. DataError: shape or classes differ from the checkpoint's, or test
    images were trained on. CalibrationError: too few images left in a class for the promised rate.
    """
    if not checkpoint.finished:
        raise CheckpointError(
            f"training stopped after epoch {checkpoint.epoch} of {checkpoint.config.training.epochs}; "
            "run the same lgm train again to finish it"
        )
    check_rate(false_alarm_rate)
    splits = load_splits(data)
    _check_data(checkpoint, splits, data)
    calibration = _unseen(join(splits.train, splits.calibration), checkpoint)
    network = checkpoint.build_network().to(device).requires_grad_(False)
    detector = LikelihoodDetector.fit(evidence_batches(network, splits.train, device))
    conformal = calibrate(detector, evidence_batches(network, calibration, device), len(checkpoint.class_names))
    conformal.check_promise(false_alarm_rate, checkpoint.class_names)
    screener = Screener(
        network,
        [detector],
        [conformal],
        decider=detector.name,
        labels=checkpoint.class_names,
        image_format=checkpoint.image_format,
        false_alarm_rate=false_alarm_rate,
        name=name,
    ).to(device)
    return screener, splits, calibration


def evidence_batches(
    network: Network, images: ImageSet, device: torch.device
) -> Iterator[tuple[Evidence, Int[Tensor, " n"]]]:
    """Evidence and labels, a batch at a time, so that memory does not grow with the set."""
    labels = torch.split(images.labels, BATCH_SIZE)
    for batch, batch_labels in zip(batches(images.images), labels, strict=True):
        with torch.no_grad():
            evidence = gather_evidence(network, batch.to(device))
        yield evidence, batch_labels.to(device)


def calibrate(
    detector: Detector, batches: Iterable[tuple[Evidence, Int[Tensor, " n"]]], num_classes: int
) -> ConformalCalibration:
    """Conformal calibration on clean evidence, none of which the network or the detector was fitted on."""
    scores, class_index = [], []
    for evidence, _ in batches:
        scores.append(detector(evidence))
        class_index.append(evidence.class_index)
    return ConformalCalibration.fit(torch.cat(scores), torch.cat(class_index), num_classes)


def batches(images: Tensor) -> Iterator[Float[Tensor, "n c h w"]]:
    """uint8 images as float batches in [0, 1]."""
    for chunk in torch.split(images, BATCH_SIZE):
        yield to_unit(chunk)


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


def abnormal_images(name: str, data: DataConfig, test: ImageSet, image_format: ImageFormat) -> Tensor:
    """uint8 images of no class.

    "noise" (uniform), "inverted" (the test images), another data set's test images, or those of a folder.

    Raises DataError: an unknown name, or images of another shape.
    """
    if name == "inverted":
        return 255 - test.images
    if name == "noise":
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, test.images.shape, dtype=torch.uint8, generator=generator)
    if name not in get_args(DataConfig.__annotations__["name"]):
        return _images_of_folder(Path(name), image_format)
    foreign = load_splits(parse_data_config({"name": name, "directory": data.directory})).test.images
    if foreign.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{name} has images of shape {tuple(foreign.shape[1:])}, the bundle takes {tuple(test.images.shape[1:])}"
        )
    return foreign


def _images_of_folder(folder: Path, image_format: ImageFormat) -> Tensor:
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"abnormal set {str(folder)!r} is neither noise, inverted, a data set's name nor a folder of images"
        )
    return torch.stack([read_image(path, image_format) for path in files])


def _check_data(checkpoint: Checkpoint, splits: Splits, data: DataConfig) -> None:
    if splits.image_format.shape != checkpoint.image_format.shape:
        raise DataError(
            f"{data.name} has images of shape {splits.image_format.shape}; "
            f"the checkpoint was trained on {checkpoint.image_format.shape}"
        )
    if splits.train.class_names != checkpoint.class_names:
        raise DataError(
            f"{data.name} has classes {', '.join(splits.train.class_names)}; "
            f"the checkpoint has {', '.join(checkpoint.class_names)}"
        )
    if splits.test.digest() != checkpoint.split_digests["test"]:
        seen = int(torch.isin(splits.test.fingerprints(), checkpoint.trained_images).sum())
        if seen:
            raise DataError(
                f"{seen} of the {len(splits.test)} test images of {data.name} were trained on: "
                "part the images as in training (data.split_seed), or give a test set of its own"
            )


def _unseen(images: ImageSet, checkpoint: Checkpoint) -> ImageSet:
    seen = torch.isin(images.fingerprints(), checkpoint.trained_images)
    if bool(seen.all()):
        raise CalibrationError(
            f"the network was trained on all of the {len(images)} images: none is left to calibrate"
        )
    return images.select(torch.nonzero(~seen).squeeze(1))
