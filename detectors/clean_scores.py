"""The clean scores of a bundle, alone: no network, no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from detectors.manifest import DETECTORS, Manifest, read_checked
from model.errors import BundleError


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanScores:
    """Ascending scores (rows, m) for each detector and class, last the verdict, and how many of each row are real."""

    scores: NDArray[np.floating]
    counts: NDArray[np.int64]


def load_clean_scores(bundle: Path, manifest: Manifest) -> CleanScores:
    """Raises BundleError naming the file and the reason."""
    content = read_checked(bundle / DETECTORS, manifest.files[DETECTORS])
    try:
        arrays = load_arrays(content)
        return CleanScores(scores=arrays["calibration.scores"], counts=arrays["calibration.counts"])
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{bundle / DETECTORS} holds no calibration: {error}") from None
