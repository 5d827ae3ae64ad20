"""A trained network -> one row of figures: how it classifies, and what its own likelihood tells apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.comparison.figures import (
    calibration_error,
    likelihood_misfit,
    quantile_threshold,
    scatter_ratio,
)
from detectors.comparison.settings import Abnormal, Run
from detectors.comparison.verification import cosine_similarity, draw_pairs, verify
from detectors.evaluation import metrics
from detectors.evaluation.attacks import run_attack
from detectors.fitting import abnormal_images, batches
from model import gaussian
from model.checkpoint import Checkpoint
from model.criterion import classifier_of, restore_criterion
from model.data import ImageSet, load_splits, to_unit, unseen_classes
from model.network import Network

RATE = 0.05
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a network makes of n images: features (n, d), log_joint (n, k), score (n,) = -log p(x), in nats."""

    features: Tensor
    log_joint: Tensor

    @property
    def score(self) -> np.ndarray:
        return -gaussian.log_likelihood(self.log_joint).double().numpy()

    @property
    def class_index(self) -> Tensor:
        return self.log_joint.argmax(1)


@torch.inference_mode()
def look(network: Network, images: Tensor) -> Seen:
    """Ask about uint8 images, or floats in [0, 1]."""
    floats = torch.split(images, 256) if images.is_floating_point() else batches(images)
    found = [network(batch) for batch in floats]
    return Seen(
        features=torch.cat([one.features for one in found]), log_joint=torch.cat([one.log_joint for one in found])
    )


def judge(run: Run, checkpoint: Checkpoint, abnormal: Abnormal) -> Row:
    """The figures of one finished run. All detection is by -log p(x) alone, its threshold from calibration images.

    Where the loss has no density, p is that of the Gaussians fitted after training; attacks go through them, too.
    """
    network = checkpoint.build_network().requires_grad_(False)
    splits = load_splits(checkpoint.config.data)
    clean = look(network, splits.test.images)
    threshold = quantile_threshold(look(network, splits.calibration.images).score, RATE)
    row: Row = {"experiment": run.experiment.name, "variant": run.variant, "loss": checkpoint.config.loss.name}
    row |= {"seed": run.seed, **{key: run.grid[key] for key in run.experiment.grid}}
    row |= _classification(checkpoint, network, clean, splits.test.labels)
    row |= _density(network, clean, splits.test.labels)
    row["realised_fpr"] = float(np.mean(clean.score > threshold))
    sample = splits.test.select(torch.randperm(len(splits.test), generator=_generator())[: abnormal.limit])
    for name in abnormal.attacks:
        row |= _attacked(network, name, sample, abnormal, threshold)
    for name in abnormal.foreign:
        images = abnormal_images(name, checkpoint.config.data, sample, checkpoint.image_format)[: abnormal.limit]
        row |= _told_apart(name, clean.score, look(network, images).score, threshold)
    if checkpoint.config.data.left_out:
        row |= _verified(network, unseen_classes(checkpoint.config.data), abnormal)
    areas = [row[f"{name}_auroc"] for name in (*abnormal.attacks, *abnormal.foreign)]
    if any(area is not None for area in areas):
        row["detection"] = float(np.mean([area for area in areas if area is not None]))
    row["training_seconds"] = sum(epoch["seconds"] for epoch in checkpoint.history)
    return row


def _classification(checkpoint: Checkpoint, network: Network, clean: Seen, labels: Tensor) -> Row:
    """By the loss's own classifier, and by the Gaussians, which are one for L-GM."""
    with torch.inference_mode():
        logits = classifier_of(network, restore_criterion(checkpoint, network))(clean.features)
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "calibration_error": calibration_error(logits.double().softmax(1).numpy(), labels.numpy()),
        "gaussian_accuracy": float((clean.class_index == labels).double().mean()),
    }


def _density(network: Network, clean: Seen, labels: Tensor) -> Row:
    mixture = network.mixture
    with torch.inference_mode():
        variances = 1.0 if mixture.log_variances is None else mixture.log_variances.exp()[labels]
        squares = ((clean.features - mixture.means[labels]).square() / variances).sum(1)
    features = clean.features.double().numpy()
    return {
        "log_likelihood": float(-clean.score.mean()),
        "likelihood_misfit": likelihood_misfit(squares.double().numpy(), features.shape[1]),
        "scatter_ratio": scatter_ratio(features, labels.numpy()),
    }


def _attacked(network: Network, name: str, sample: ImageSet, abnormal: Abnormal, threshold: float) -> Row:
    """Of images that were right before: those that the attack made wrong are to be told from them."""
    images, labels = to_unit(sample.images), sample.labels
    found = [
        run_attack(network, name, batch, target, eps=abnormal.eps, steps=abnormal.steps)
        for batch, target in zip(torch.split(images, 128), torch.split(labels, 128), strict=True)
    ]
    before, after = look(network, images), look(network, torch.cat(found))
    right = (before.class_index == labels).numpy()
    won = right & (after.class_index != labels).numpy()
    told = _told_apart(name, before.score[right], after.score[won], threshold)
    return {f"{name}_accuracy": float((after.class_index == labels).double().mean()), **told}


def _told_apart(name: str, clean: np.ndarray, abnormal: np.ndarray, threshold: float) -> Row:
    return {
        f"{name}_auroc": metrics.auroc(clean, abnormal),
        f"{name}_tpr_at_fpr_5": metrics.share(abnormal > threshold),
    }


def _verified(network: Network, unseen: ImageSet, abnormal: Abnormal) -> Row:
    """The same pairs for every run: they are drawn by a seed of their own."""
    pairs = draw_pairs(unseen.labels.numpy(), abnormal.num_pairs, seed=0)
    features = look(network, unseen.images).features.double().numpy()
    found = verify(cosine_similarity(features, pairs), pairs)
    return {
        "verification_accuracy": found.accuracy,
        "verification_error": found.standard_error,
        "verification_tpr_at_fpr_1": found.tpr_at_fpr_1,
    }


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
