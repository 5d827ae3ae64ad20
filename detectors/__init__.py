"""What is judged: activations -> scores -> p-values -> verdicts."""

from detectors.bundle import SHIPPED_BUNDLE, load_bundle
from detectors.screener import DetectorEvidence, Screener, Verdicts
from model.errors import BundleError, CalibrationError, ImageError

__all__ = [
    "SHIPPED_BUNDLE",
    "BundleError",
    "CalibrationError",
    "DetectorEvidence",
    "ImageError",
    "Screener",
    "Verdicts",
    "load_bundle",
]
