"""Class weights (k, d) of classifiers without bias, and the least scales that let a cosine classifier be sure."""

import math

import torch
from torch import nn

from model.errors import ConfigurationError


def class_weights(num_classes: int, num_features: int) -> nn.Parameter:
    """Fresh weights as nn.Linear starts its own."""
    weights = nn.Parameter(torch.empty(num_classes, num_features))
    nn.init.kaiming_uniform_(weights, a=math.sqrt(5))
    return weights


def least_scale(num_classes: int, probability: float) -> float:
    """s = (k - 1) / k ln((k - 1) P / (1 - P)): the least scale at which a class's centre can have posterior P.

    Wang et al., "CosFace", CVPR 2018, equation 6, for k unit vectors as far apart as k vectors can be.
    """
    if not 0 < probability < 1:
        raise ConfigurationError(f"probability must lie in (0, 1), got {probability}")
    if num_classes < 2:
        raise ConfigurationError(f"a scale from a probability needs at least 2 classes, got {num_classes}")
    rest = num_classes - 1
    least = rest / num_classes * math.log(rest * probability / (1 - probability))
    if least <= 0:
        raise ConfigurationError(f"probability must be above chance, 1 / {num_classes}, got {probability}")
    return least
