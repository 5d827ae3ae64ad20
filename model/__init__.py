"""What is learned: images -> features, class Gaussians."""

from typing import TYPE_CHECKING

from model.lazy import lazily

if TYPE_CHECKING:
    from model.losses.lgm import LGMLoss, LossTerms
    from model.mixture import GaussianMixture

__all__ = ["GaussianMixture", "LGMLoss", "LossTerms"]

__getattr__ = lazily(
    __name__,
    {"GaussianMixture": "model.mixture", "LGMLoss": "model.losses.lgm", "LossTerms": "model.losses.lgm"},
)
