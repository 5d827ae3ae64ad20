"""What is judged: activations -> scores -> p-values -> verdicts."""

from detectors.bundle import ROBUST_BUNDLE, SHIPPED_BUNDLE, load_bundle
from detectors.screener import DetectorEvidence, Screener, Verdicts
from model.errors import BundleError, CalibrationError, ImageError

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
