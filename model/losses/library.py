"""pytorch-metric-learning, which serves wherever it has a loss."""

from types import ModuleType

from model.errors import ConfigurationError


def losses() -> ModuleType:
    """Its losses. Raises ConfigurationError where it is not installed; nothing else here needs it."""
    try:
        from pytorch_metric_learning import losses
    except ImportError:
        raise ConfigurationError("this loss needs pytorch-metric-learning: pip install 'lgm-guard[train]'") from None
    found: ModuleType = losses
    return found


def distances() -> ModuleType:
    """Its distances."""
    from pytorch_metric_learning import distances

    found: ModuleType = distances
    return found
