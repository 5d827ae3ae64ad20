"""A trained network -> one row of figures: how it classifies, and what its own likelihood tells apart."""

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectors.comparison.figures import (
    calibration_error,
    likelihood_misfit,
    quantile_threshold,
    scatter_ratio,
)
from detectors.comparison.planning import Run
from detectors.comparison.settings import Abnormal
from detectors.comparison.verification import cosine_similarity, draw_pairs, verify
from detectors.evaluation import metrics
from detectors.evaluation.attacks import run_attack
from detectors.evidence_batches import batches
from detectors.measuring import abnormal_images
from model import gaussian
from model.checkpoint import Checkpoint
from model.config import DataConfig
from model.criterion import Classifier, Criterion, classifier_of, fit_gaussians, restore_criterion
from model.data import Splits, load_splits, unseen_classes
from model.image_set import ImageSet, digest_of, to_unit
from model.losses.base import RivalLoss
from model.mixture import GaussianMixture
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """All that a run is trained and judged on. digest: SHA-256 of it."""

    splits: Splits
    digest: str

    @classmethod
    def load(cls, data: DataConfig, abnormal: Abnormal) -> "Images":
        """Raises DataError unless all are there, foreign ones of the data set's shape."""
        splits = load_splits(data)
        digest = hashlib.sha256()
        for part in (splits.train, splits.calibration, splits.test):
            digest.update(part.digest().encode())
        for name in abnormal.foreign:
            digest.update(digest_of(abnormal_images(name, data, splits.test, splits.image_format)).encode())
        return cls(splits=splits, digest=digest.hexdigest())


def judge(run: Run, checkpoint: Checkpoint, splits: Splits, abnormal: Abnormal) -> Row:
    """The figures of one finished run on its data. Detection is by -log p(x) alone, thresholds by calibration images.

    Where the loss has no density, or the run says so, p is that of Gaussians fitted after training. Attacks go
    through the loss's own classifier: such Gaussians are so sure that they have no gradient left to follow, which
    would pass for robustness.
    """
    trained = checkpoint.build_network().requires_grad_(False)
    criterion = restore_criterion(checkpoint, trained)
    classifier, victim = classifier_of(trained, criterion), _victim(trained, criterion)
    network = with_fitted_gaussians(trained, splits.train) if run.fitted else trained
    clean = look(network, splits.test.images)
    row: Row = {"experiment": run.experiment.name, "variant": run.variant, "loss": checkpoint.config.loss.name}
    row |= {"seed": run.seed, **{key: run.grid[key] for key in run.experiment.grid}}
    row |= _classification(classifier, clean, splits.test.labels)
    row |= _detection(checkpoint, network, victim, clean, splits, abnormal)
    if checkpoint.config.data.left_out:
        row |= _verified(network, unseen_classes(checkpoint.config.data), abnormal)
    row |= _density(network, clean, splits.test.labels)
    row["training_seconds"] = sum(epoch["seconds"] for epoch in checkpoint.history)
    return row


def with_fitted_gaussians(network: Network, images: ImageSet) -> Network:
    """The same features under diagonal Gaussians fitted to those of these training images."""
    fitted, own = copy.deepcopy(network), network.mixture
    fitted.mixture = GaussianMixture(
        own.num_classes, own.num_features, variance="diagonal", prior=own.prior, variance_floor=own.variance_floor
    )
    fit_gaussians(fitted, images)
    return fitted.requires_grad_(False)


def _classification(classify: Classifier, clean: Seen, labels: Tensor) -> Row:
    """By the loss's own classifier, and by the Gaussians, which are one for L-GM."""
    with torch.inference_mode():
        logits = classify(clean.features)
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "calibration_error": calibration_error(logits.double().softmax(1).numpy(), labels.numpy()),
        "gaussian_accuracy": float((clean.class_index == labels).double().mean()),
    }


def _detection(
    checkpoint: Checkpoint, network: Network, victim: Network, clean: Seen, splits: Splits, abnormal: Abnormal
) -> Row:
    """detection: the mean of all areas under the ROC curve; None where one is missing, as an attack fooled nobody."""
    threshold = quantile_threshold(look(network, splits.calibration.images).score, RATE)
    sample = splits.test.select(torch.randperm(len(splits.test), generator=_generator())[: abnormal.limit])
    row: Row = {}
    for name in abnormal.attacks:
        row |= _attacked(network, victim, name, sample, abnormal, threshold)
    for name in abnormal.foreign:
        images = abnormal_images(name, checkpoint.config.data, sample, checkpoint.image_format)[: abnormal.limit]
        row |= _told_apart(name, clean.score, look(network, images).score, threshold)
    areas = [area for key, area in row.items() if key.endswith("_auroc")]
    mean = {"detection": None if None in areas else float(np.mean(areas))} if areas else {}
    return {**mean, **row, "realised_fpr": float(np.mean(clean.score > threshold))}


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


def _attacked(
    network: Network, victim: Network, name: str, sample: ImageSet, abnormal: Abnormal, threshold: float
) -> Row:
    """Of images that the classifier had right before: those that the attack made wrong are to be told from them."""
    images, labels = to_unit(sample.images), sample.labels
    found = [
        run_attack(victim, name, batch, target, eps=abnormal.eps, steps=abnormal.steps)
        for batch, target in zip(torch.split(images, 128), torch.split(labels, 128), strict=True)
    ]
    before, after = look(network, images), look(network, torch.cat(found))
    with torch.inference_mode():
        told_before, told_after = (victim.mixture(seen.features).argmax(1) for seen in (before, after))
    right = (told_before == labels).numpy()
    won = right & (told_after != labels).numpy()
    told = _told_apart(name, before.score[right], after.score[won], threshold)
    return {f"{name}_accuracy": float((told_after == labels).double().mean()), **told}


class _Classifier(nn.Module):
    """The loss's own classifier where an attack expects the mixture."""

    def __init__(self, criterion: RivalLoss, network: Network):
        super().__init__()
        self.criterion = criterion
        self.means = network.mixture.means
        self.num_classes = network.mixture.num_classes

    def forward(self, features: Tensor) -> Tensor:
        return self.criterion.logits(features)


def _victim(network: Network, criterion: Criterion) -> Network:
    """A network whose scores are those of the loss's own classifier; L-GM's are the mixture's."""
    if not isinstance(criterion, RivalLoss):
        return network
    victim = copy.deepcopy(network)
    victim.add_module("mixture", _Classifier(criterion.requires_grad_(False), network))
    return victim


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
