"""normalise -> backbone -> embedding -> Gaussian head; one forward pass gives Activations."""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.backbones import build_backbone
from model.mixture import GaussianMixture
from model.network_config import MixtureConfig, NetworkConfig


class Activations(NamedTuple):
    """What one forward pass leaves: features (n, d), log_joint (n, k) in nats, and the means over the plane of
    every tapped layer's maps, a tensor (n, channels) each; all float32.
    """

    features: Float[Tensor, "n d"]
    log_joint: Float[Tensor, "n k"]
    taps: tuple[Float[Tensor, "n _"], ...]


class Normalise(nn.Module):
    """Images in [0, 1] -> zero mean and unit deviation per channel of the training set."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]):
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (images - self.mean) / self.std


class Network(nn.Module):
    """A classifier whose features follow a Gaussian mixture. Images (n, c, h, w) in [0, 1].

    In evaluation mode an output depends on its own image alone.
    """

    def __init__(self, config: NetworkConfig, mixture: MixtureConfig, *, num_classes: int, num_channels: int):
        super().__init__()
        self.normalise = Normalise(torch.zeros(num_channels), torch.ones(num_channels))
        self.backbone = build_backbone(config.backbone, num_channels=num_channels, width=config.width)
        self.embedding = nn.Linear(self.backbone.num_outputs, config.num_features)
        self.mixture = GaussianMixture(
            num_classes,
            config.num_features,
            variance=mixture.variance,
            prior=mixture.prior,
            variance_floor=mixture.variance_floor,
            initial_scale=mixture.initial_scale,
        )

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features, float32 whatever precision the backbone runs in."""
        return self._embedded(self.backbone(self.normalise(images)))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Activations:
        outputs, taps = self.backbone.tapped(self.normalise(images))
        features = self._embedded(outputs)
        return Activations(features, self.mixture(features), tuple(tap.float() for tap in taps))

    def _embedded(self, outputs: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        with torch.autocast(outputs.device.type, enabled=False):
            return cast(Tensor, self.embedding(outputs.float()))
