"""Every detector there is, by name, and those that a bundle has unless it is asked for others."""

from collections.abc import Iterable

from detectors.base import Detector
from detectors.confidence import ConfidenceDetector
from detectors.consistency import ConsistencyDetector
from detectors.energy import EnergyDetector
from detectors.kernel_density import KernelDensityDetector
from detectors.knn import KNNDetector
from detectors.layers import LayersDetector
from detectors.lid import LIDDetector
from detectors.likelihood import LikelihoodDetector
from detectors.mahalanobis import MahalanobisDetector
from detectors.margin import MarginDetector
from detectors.residual import ResidualDetector
from detectors.squeezing import FeatureSqueezingDetector
from model.errors import ConfigurationError

_CLASSES: tuple[type[Detector], ...] = (
    LikelihoodDetector,
    LayersDetector,
    ResidualDetector,
    MarginDetector,
    ConsistencyDetector,
    FeatureSqueezingDetector,
    ConfidenceDetector,
    EnergyDetector,
    MahalanobisDetector,
    KernelDensityDetector,
    LIDDetector,
    KNNDetector,
)
KNOWN_DETECTORS: dict[str, type[Detector]] = {known.name: known for known in _CLASSES}

# Their forward passes together cost a fraction of the network's own; the others take more passes or a reference set.
DEFAULT_DETECTORS = ("likelihood", "layers", "residual", "margin")


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names themselves. Raises ConfigurationError for none, one that is unknown, or one twice."""
    names = tuple(names)
    for name in names:
        if name not in KNOWN_DETECTORS:
            raise ConfigurationError(f"unknown detector {name!r}; there are {', '.join(KNOWN_DETECTORS)}")
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"detectors must be at least one, each named once, got {', '.join(names) or 'none'}")
    return names
