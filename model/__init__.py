"""What is learned: images -> features, class Gaussians."""

from model.losses.lgm import LGMLoss, LossTerms
from model.mixture import GaussianMixture

__all__ = ["GaussianMixture", "LGMLoss", "LossTerms"]
