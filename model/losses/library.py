"""pytorch-metric-learning, which serves wherever it has a loss."""

from importlib import import_module
from types import ModuleType

from model.errors import ConfigurationError


def losses() -> ModuleType:
    """Its losses. Raises ConfigurationError where it is not installed; nothing else here needs it."""
    return _part("losses")


def distances() -> ModuleType:
    """Its distances. Raises ConfigurationError as `losses` does."""
    return _part("distances")


def _part(name: str) -> ModuleType:
    try:
        return import_module(f"pytorch_metric_learning.{name}")
    except ModuleNotFoundError:
        raise ConfigurationError("this loss needs pytorch-metric-learning: pip install 'lgm-guard[train]'") from None
