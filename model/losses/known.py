"""Every loss by name, with the options that it takes."""

import inspect

from model.errors import ConfigurationError
from model.losses.angular_margin import ArcFaceLoss, ASoftmaxLoss, CosFaceLoss, LSoftmaxLoss
from model.losses.base import RivalLoss
from model.losses.center import CenterLoss
from model.losses.cosine import COCOLoss, CosineNormalisationLoss, NormFaceLoss
from model.losses.distillation import DistillationLoss
from model.losses.feature_incay import FeatureIncayLoss
from model.losses.l2_softmax import L2SoftmaxLoss
from model.losses.noisy_softmax import NoisySoftmaxLoss
from model.losses.pairs import ContrastiveLoss, QuadrupletLoss, TripletLoss
from model.losses.softmax import LabelSmoothingLoss, SoftmaxLoss

RIVALS: dict[str, type[RivalLoss]] = {
    kind.name: kind
    for kind in (
        SoftmaxLoss,
        LabelSmoothingLoss,
        NoisySoftmaxLoss,
        DistillationLoss,
        ContrastiveLoss,
        TripletLoss,
        QuadrupletLoss,
        CenterLoss,
        LSoftmaxLoss,
        ASoftmaxLoss,
        NormFaceLoss,
        CosineNormalisationLoss,
        L2SoftmaxLoss,
        COCOLoss,
        CosFaceLoss,
        ArcFaceLoss,
        FeatureIncayLoss,
    )
}
GAUSSIAN = {
    "gm": "Gaussian mixture: L-GM without margin, alpha = 0 (Wan et al. 2018)",
    "lgm": "large-margin Gaussian mixture (Wan et al. 2018); mixture.variance: unit, isotropic, diagonal",
}
GAUSSIAN_OPTIONS = {"gm": ("lambda", "block_size"), "lgm": ("alpha", "lambda", "block_size")}
LOSSES = (*RIVALS, *GAUSSIAN)
DEFAULT = "lgm"


def title_of(name: str) -> str:
    """The loss's name in words, with its source."""
    return GAUSSIAN[name] if name in GAUSSIAN else RIVALS[name].title


def options_of(name: str) -> dict[str, float | None]:
    """Options that are set under [loss], with their defaults; None: derived, as the loss says, or needed."""
    if name in GAUSSIAN:
        return {option: None if option == "block_size" else 0.1 for option in GAUSSIAN_OPTIONS[name]}
    parameters = inspect.signature(RIVALS[name].__init__).parameters.values()
    keywords = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return {found.name: None if found.default is found.empty else found.default for found in keywords}


RIVAL_OPTIONS = tuple(dict.fromkeys(option for name in RIVALS for option in options_of(name)))


def check_options(name: str, given: set[str]) -> None:
    """Raises ConfigurationError for an unknown loss, or an option that the loss does not have."""
    if name not in LOSSES:
        raise ConfigurationError(f"loss.name {name!r} does not exist; there are: {', '.join(LOSSES)}")
    known = options_of(name)
    for option in sorted(given - known.keys()):
        has = f"it has {', '.join(known)}" if known else "it has no options"
        raise ConfigurationError(f"loss.{option}: {name} has no such option; {has}")
