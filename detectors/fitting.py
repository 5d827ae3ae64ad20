"""A trained checkpoint and clean data -> a calibrated screener."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from detectors.base import Detector
from detectors.calibration import ConformalCalibration, check_rate
from detectors.evidence_batches import EvidenceBatches
from detectors.fusion import Fusion, stack_rows
from detectors.known import DEFAULT_DETECTORS, KNOWN_DETECTORS, check_names
from detectors.screener import Screener
from model.checkpoint import Checkpoint
from model.config import DataConfig
from model.data import Splits, load_splits
from model.errors import CalibrationError, CheckpointError, DataError
from model.image_set import ImageSet, join

NUM_FITTING_IMAGES = 20_000  # of the training set, drawn anew by the seed; more change no figure that we print
SURPRISE_SHARE = 0.2  # of the calibration images: a few quantiles need fewer than the verdict's promise does


class Fitted(NamedTuple):
    """A calibrated screener, the data's splits, and the images that it was calibrated on."""

    screener: Screener
    splits: Splits
    calibration: ImageSet


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
) -> Fitted:
    """Fit detectors on clean training images, and calibrate on clean images that nothing was trained on.

    Those are all images of the data set outside its test set less the ones that the network or the detectors were
    fitted on (told by their fingerprints). Detectors are fitted on what the network was trained on; of data foreign
    to it on half of the training images. A fifth of the calibration images, drawn by the seed, tells the fusion how
    surprising a score is; the others calibrate the fused verdict, and all of them each detector. detectors decide
    together; those beside are evidence only.

    Raises CheckpointError: not finished. ConfigurationError: an unknown detector. DataError: shape or classes
    differ from the checkpoint's, or test images were trained on. CalibrationError: too few images left in a class
    for the promised rate.
    """
    _check_finished(checkpoint)
    check_rate(false_alarm_rate)
    names = check_names([*detectors, *beside])
    splits = load_splits(data, checkpoint.image_format)
    _check_data(checkpoint, splits, data)
    network = checkpoint.build_network().to(device).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    fitting = _fitting_images(splits.train, checkpoint, generator)
    calibration = _unseen(join(splits.train, splits.calibration), checkpoint, fitting)
    clean = EvidenceBatches(network, fitting, device)
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
    return Fitted(screener.requires_grad_(False), splits, calibration)


def unused_test_images(splits: Splits, checkpoint: Checkpoint) -> ImageSet:
    """Those that nothing was trained, fitted or calibrated on: a folder's two parts may hold the same pictures.

    Raises DataError for none.
    """
    test, used = splits.test, [splits.train.fingerprints(), splits.calibration.fingerprints()]
    unused = ~torch.isin(test.fingerprints(), torch.cat([checkpoint.trained_images, *used]))
    if not bool(unused.any()):
        raise DataError(f"all {len(test)} test images were trained, fitted or calibrated on: none is left to measure")
    return test.select(torch.nonzero(unused).squeeze(1))


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


def _check_finished(checkpoint: Checkpoint) -> None:
    if not checkpoint.finished:
        raise CheckpointError(
            f"training stopped after epoch {checkpoint.epoch} of {checkpoint.config.training.epochs}; "
            "run the same lgm train again to finish it"
        )


def _check_data(checkpoint: Checkpoint, splits: Splits, data: DataConfig) -> None:
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


def _fitting_images(images: ImageSet, checkpoint: Checkpoint, generator: torch.Generator) -> ImageSet:
    """Drawn from those trained on; where none was, half of all, so that the others are left to calibrate."""
    trained = torch.isin(images.fingerprints(), checkpoint.trained_images)
    if bool(trained.any()):
        return _drawn(images.select(torch.nonzero(trained).squeeze(1)), NUM_FITTING_IMAGES, generator)
    return _drawn(images, min(NUM_FITTING_IMAGES, len(images) // 2), generator)


def _unseen(images: ImageSet, checkpoint: Checkpoint, fitting: ImageSet) -> ImageSet:
    seen = torch.isin(images.fingerprints(), torch.cat([checkpoint.trained_images, fitting.fingerprints()]))
    if bool(seen.all()):
        raise CalibrationError(
            f"the network or the detectors were fitted on all of the {len(images)} images: none is left to calibrate"
        )
    return images.select(torch.nonzero(~seen).squeeze(1))
