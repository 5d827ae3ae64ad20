"""What is judged: activations -> scores -> p-values -> verdicts."""

from typing import TYPE_CHECKING

from detectors.shipped import ROBUST_BUNDLE, SHIPPED_BUNDLE
from model.errors import BundleError, CalibrationError, ImageError
from model.lazy import lazily

if TYPE_CHECKING:
    from detectors.bundle import load_bundle
    from detectors.screener import DetectorEvidence, Screener, Verdicts

__all__ = [
    "ROBUST_BUNDLE",
    "SHIPPED_BUNDLE",
    "BundleError",
    "CalibrationError",
    "DetectorEvidence",
    "ImageError",
    "Screener",
    "Verdicts",
    "load_bundle",
]

__getattr__ = lazily(
    __name__,
    {
        "DetectorEvidence": "detectors.screener",
        "Screener": "detectors.screener",
        "Verdicts": "detectors.screener",
        "load_bundle": "detectors.bundle",
    },
)
