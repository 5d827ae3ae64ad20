"""normalise -> backbone -> embedding -> Gaussian head; one forward pass gives Activations."""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.backbones import build_backbone
from model.config import MixtureConfig, NetworkConfig
from model.mixture import GaussianMixture


class Activations(NamedTuple):
    """What one forward pass leaves: features (n, d) and log_joint (n, k) in nats, both float32."""

    features: Float[Tensor, "n d"]
    log_joint: Float[Tensor, "n k"]


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
        outputs = self.backbone(self.normalise(images))
        with torch.autocast(images.device.type, enabled=False):
            return cast(Tensor, self.embedding(outputs.float()))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Activations:
        features = self.embed(images)
        return Activations(features, self.mixture(features))
