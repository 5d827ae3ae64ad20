"""A trained checkpoint and clean data -> a calibrated screener, and what it is worth on data it never saw."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.base import Detector, Evidence, gather_evidence
from detectors.calibration import ConformalCalibration, check_rate
from detectors.fusion import Fusion, stack_rows
from detectors.known import DEFAULT_DETECTORS, KNOWN_DETECTORS, check_names
from detectors.screener import Screener, Verdicts
from model.checkpoint import Checkpoint
from model.config import DataConfig, parse_data_config
from model.data import ImageSet, Splits, image_files, join, load_splits, read_image, to_unit
from model.errors import CalibrationError, CheckpointError, DataError
from model.images import ImageFormat
from model.network import Network

BATCH_SIZE = 256
NUM_FITTING_IMAGES = 20_000  # of the training set, drawn anew by the seed; more change no figure that we print
SURPRISE_SHARE = 0.2  # of the calibration images: a few quantiles need fewer than the verdict's promise does
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


def fit_screener(
    checkpoint: Checkpoint,
    data: DataConfig,
    *,
    false_alarm_rate: float,
    name: str,
    device: torch.device,
    detectors: Sequence[str] = DEFAULT_DETECTORS,
    beside: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Screener, Splits, ImageSet]:
    """Fit detectors on clean training images, and calibrate on clean images that nothing was trained on.

    Those are all images of the data set outside its test set less the ones trained on (told by their
    fingerprints). A fifth of them, drawn by the seed, tells the fusion how surprising a score is; the others
    calibrate the fused verdict, and all of them each detector. detectors decide together; those
    beside are evidence only. Returns the screener, the data's splits and the calibration images.

    Raises CheckpointError: not finished. ConfigurationError: an unknown detector. DataError: shape or classes
    differ from the checkpoint's, or test images were trained on. CalibrationError: too few images left in a class
    for the promised rate.
    """
    if not checkpoint.finished:
        raise CheckpointError(
            f"training stopped after epoch {checkpoint.epoch} of {checkpoint.config.training.epochs}; "
            "run the same lgm train again to finish it"
        )
    check_rate(false_alarm_rate)
    names = check_names([*detectors, *beside])
    splits = load_splits(data)
    _check_data(checkpoint, splits, data)
    calibration = _unseen(join(splits.train, splits.calibration), checkpoint)
    network = checkpoint.build_network().to(device).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    clean = EvidenceBatches(network, _drawn(splits.train, NUM_FITTING_IMAGES, generator), device)
    fitted = [KNOWN_DETECTORS[kind].fit(clean, generator=generator).to(device).eval() for kind in names]
    judges = _calibrate(fitted, tuple(detectors), EvidenceBatches(network, calibration, device), generator)
    judges.verdict.check_promise(false_alarm_rate, checkpoint.class_names)
    screener = Screener(
        network,
        fitted,
        judges.fusion,
        ConformalCalibration.join([judges.evidence, judges.verdict]),
        labels=checkpoint.class_names,
        image_format=checkpoint.image_format,
        false_alarm_rate=false_alarm_rate,
        name=name,
    ).to(device)
    return screener.requires_grad_(False), splits, calibration


class EvidenceBatches:
    """Evidence and labels, made anew a batch at a time, so that memory does not grow with the set."""

    def __init__(self, network: Network, images: ImageSet, device: torch.device):
        self._network = network
        self._images = images
        self._device = device

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[Evidence, Int[Tensor, " n"]]]:
        labels = torch.split(self._images.labels, BATCH_SIZE)
        for batch, batch_labels in zip(batches(self._images.images), labels, strict=True):
            with torch.no_grad():
                evidence = gather_evidence(self._network, batch.to(self._device))
            yield evidence, batch_labels.to(self._device)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judges:
    fusion: Fusion
    evidence: ConformalCalibration
    verdict: ConformalCalibration


@torch.no_grad()
def _calibrate(
    detectors: list[Detector], fused: tuple[str, ...], clean: EvidenceBatches, generator: torch.Generator
) -> _Judges:
    """Calibrations of each detector and of all together, the latter on images that the fusion has not seen."""
    num_classes, class_index, scores = _score(detectors, clean)
    order = torch.randperm(len(class_index), generator=generator).to(class_index.device)
    first, second = order.tensor_split([int(SURPRISE_SHARE * len(order))])
    fusion = Fusion.fit({name: scores[name][first] for name in fused}, class_index[first], num_classes)
    together = fusion({name: scores[name][second] for name in fused}, class_index[second])
    stacked, rows = stack_rows(scores.values(), class_index, num_classes)
    return _Judges(
        fusion=fusion,
        evidence=ConformalCalibration.fit(stacked, rows, len(scores) * num_classes),
        verdict=ConformalCalibration.fit(together, class_index[second], num_classes),
    )


def _score(detectors: list[Detector], clean: EvidenceBatches) -> tuple[int, Int[Tensor, " n"], dict[str, Tensor]]:
    """Number of classes, predicted classes (n,) and each detector's scores (n,)."""
    found: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    classes, num_classes = [], 0
    for evidence, _ in clean:
        classes.append(evidence.class_index)
        num_classes = evidence.log_joint.shape[1]
        for detector in detectors:
            found[detector.name].append(detector(evidence))
    return num_classes, torch.cat(classes), {name: torch.cat(parts) for name, parts in found.items()}


def _drawn(images: ImageSet, count: int, generator: torch.Generator) -> ImageSet:
    return images.select(torch.randperm(len(images), generator=generator)[:count])


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


def check_abnormal(name: str) -> None:
    """Raises DataError unless `abnormal_images` knows the name, before anything is loaded."""
    if name not in ("noise", "inverted", *DATA_SETS) and not (Path(name).is_dir() and image_files(Path(name))):
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
    if name not in DATA_SETS:
        return torch.stack([read_image(path, image_format) for path in image_files(Path(name))])
    foreign = load_splits(parse_data_config({"name": name, "directory": data.directory})).test.images
    if tuple(foreign.shape[1:]) != image_format.shape:
        raise DataError(
            f"{name} has images of shape {tuple(foreign.shape[1:])}, the bundle takes {image_format.shape}"
        )
    return foreign


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
