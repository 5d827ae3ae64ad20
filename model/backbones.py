"""Backbones: normalised images (n, c, h, w) -> pooled outputs (n, num_outputs).

Names: "small28" and "small32" (our own, for 28 x 28 and 32 x 32), "threshold28" (small28 behind a soft threshold),
"early32" (for 32 x 32, pooled early: much accuracy for little training), "conv13" (thirteen convolutions, as
of Liu et al. 2016 for CIFAR), "resnet20" (He et al. 2016, section 4.2),
"torchvision:NAME" and "timm:NAME" (untrained networks of those libraries, last layer removed).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.errors import ConfigurationError

# torchvision's networks with several outputs in training, or without a last linear layer to remove.
UNSUITED = frozenset({"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"})


class Backbone(nn.Module):
    """Stages one after the other, then the mean over what is left of the image plane.

    Every stage that leaves maps (n, c, h, w) is tapped: their means over the plane say what the stage saw.
    """

    def __init__(self, stages: list[nn.Module], num_outputs: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.num_outputs = num_outputs

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m"]:
        return self.tapped(images)[0]

    def tapped(self, images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n m"], tuple[Tensor, ...]]:
        """Outputs (n, m), and for each tapped stage the means of its maps over the plane (n, c)."""
        outputs, means = images, []
        for stage in self.stages:
            outputs = stage(outputs)
            if outputs.ndim == 4:
                means.append(outputs.mean((2, 3)))
        return means[-1] if outputs.ndim == 4 else outputs, tuple(means)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity, which is subsampled and zero-padded (He's option A)."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int):
        super().__init__()
        self.stride = stride
        self.padding = num_outputs - num_inputs
        self.convolutions = nn.Sequential(
            nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
        )

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o y x"]:
        identity = images[:, :, :: self.stride, :: self.stride]
        identity = nn.functional.pad(identity, (0, 0, 0, 0, 0, self.padding))
        return torch.relu(self.convolutions(images) + identity)


class _SoftThreshold(nn.Module):
    """sigmoid((z - t) / T) of each channel, z in standard deviations from the training images' mean.

    Adversarially trained MNIST networks learn such filters by themselves (Madry et al. 2018). t and T
    start at MNIST's grey values 0.5 and 0.1, and T stays above FLOOR. Through the logarithm, because PyTorch takes
    a sigmoid's gradient s (1 - s) from the rounded s, which is zero from 17 T on; this one lasts to 87 T.
    """

    FLOOR = 0.1

    def __init__(self, num_channels: int):
        super().__init__()
        self.threshold = nn.Parameter(torch.full((num_channels, 1, 1), 1.2))
        self.log_temperature = nn.Parameter(torch.full((num_channels, 1, 1), math.log(0.32 - self.FLOOR)))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        temperature = self.FLOOR + self.log_temperature.exp()
        return nn.functional.logsigmoid((images - self.threshold) / temperature).exp()


def build_backbone(name: str, *, num_channels: int, width: int = 32) -> Backbone:
    """The backbone of that name; width = channels of the first stage (our own networks only).

    Raises ConfigurationError for a name that does not exist, with those that do.
    """
    library, _, architecture = name.partition(":")
    if architecture:
        return _from_library(library, architecture, num_channels)
    if name not in BACKBONES:
        known = ", ".join([*BACKBONES, "torchvision:NAME", "timm:NAME"])
        raise ConfigurationError(f"network.backbone {name!r} does not exist; there are: {known}")
    return BACKBONES[name](num_channels, width)


def _early32(num_channels: int, width: int) -> Backbone:
    """Every stage pools right after its first convolution, so that the rest of it sees a quarter of the pixels."""
    stages: list[nn.Module] = [nn.Sequential(*_convolution(num_channels, width))]
    for factor in (1, 2, 4):
        convolution, *rest = _convolution(factor * width, 2 * factor * width)
        second = _convolution(2 * factor * width, 2 * factor * width)
        stages.append(nn.Sequential(convolution, nn.MaxPool2d(2), *rest, *second))
    return Backbone(stages, 8 * width)


def _convolution(num_inputs: int, num_outputs: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU(inplace=True),
    ]


def _small28(num_channels: int, width: int) -> Backbone:
    """Three stages, then a 3 x 3 grid of means: where something is, is evidence that one mean would lose."""
    first = [*_convolution(num_channels, width), *_convolution(width, width), nn.MaxPool2d(2)]
    second = [*_convolution(width, 2 * width), *_convolution(2 * width, 2 * width), nn.MaxPool2d(2)]
    third = [*_convolution(2 * width, 4 * width), *_convolution(4 * width, 4 * width)]
    grid = [nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return Backbone([nn.Sequential(*stage) for stage in (first, second, third, grid)], 9 * 4 * width)


def _threshold28(num_channels: int, width: int) -> Backbone:
    """small28 behind a soft threshold of the pixels, for training against attacks on images of strokes."""
    small = _small28(num_channels, width)
    return Backbone([_SoftThreshold(num_channels), *small.stages], small.num_outputs)


def _small32(num_channels: int, width: int) -> Backbone:
    stages: list[nn.Module] = [nn.Sequential(*_convolution(num_channels, width))]
    num_inputs = width
    for factor in (2, 4, 8):
        layers = _convolution(num_inputs, factor * width) + _convolution(factor * width, factor * width)
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        num_inputs = factor * width
    return Backbone(stages, num_inputs)


def _conv13(num_channels: int, width: int) -> Backbone:
    """One convolution, then three stages of four, the width doubling and the plane halving between them."""
    stages: list[nn.Module] = [nn.Sequential(*_convolution(num_channels, width))]
    num_inputs = width
    for factor in (1, 2, 4):
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += _convolution(num_inputs, factor * width)
            num_inputs = factor * width
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    return Backbone(stages, num_inputs)


def _resnet20(num_channels: int, width: int) -> Backbone:
    stages: list[nn.Module] = [nn.Sequential(*_convolution(num_channels, width))]
    num_inputs = width
    for stage, num_outputs in enumerate((width, 2 * width, 4 * width)):
        blocks = []
        for block in range(3):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(_Residual(num_inputs, num_outputs, stride=stride))
            num_inputs = num_outputs
        stages.append(nn.Sequential(*blocks))
    return Backbone(stages, num_inputs)


def _from_library(library: str, architecture: str, num_channels: int) -> Backbone:
    builders = {"torchvision": _from_torchvision, "timm": _from_timm}
    if library not in builders:
        raise ConfigurationError(f"network library {library!r} is not known; use torchvision:NAME or timm:NAME")
    network = builders[library](architecture, num_channels)
    return Backbone([network], _num_outputs(f"{library}:{architecture}", network, num_channels))


def _from_torchvision(architecture: str, num_channels: int) -> nn.Module:
    from torchvision import models  # takes seconds to import, and a server of our own networks needs none of it

    known = models.list_models(module=models)
    if architecture not in known or architecture in UNSUITED:
        raise ConfigurationError(
            f"torchvision has no classifier {architecture!r} that can be used; there are: "
            + ", ".join(name for name in known if name not in UNSUITED)
        )
    network: nn.Module = models.get_model(architecture, weights=None)
    _replace_classifier(network)
    _replace_first_convolution(network, num_channels)
    return network


def _from_timm(architecture: str, num_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigurationError("timm networks need timm: pip install 'lgm-guard[timm]'") from None
    if not timm.is_model(architecture):
        raise ConfigurationError(f"timm has no network {architecture!r}; see timm.list_models()")
    network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, in_chans=num_channels)
    return network


def _replace_classifier(network: nn.Module) -> None:
    name, _ = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    _set_submodule(network, name, nn.Identity())


def _replace_first_convolution(network: nn.Module, num_channels: int) -> None:
    """The library's networks take three channels; grey images get a first convolution of one."""
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    name, first = found[0]
    if first.in_channels == num_channels:
        return
    _set_submodule(
        network,
        name,
        nn.Conv2d(
            num_channels,
            first.out_channels,
            (first.kernel_size[0], first.kernel_size[1]),
            stride=(first.stride[0], first.stride[1]),
            padding=first.padding if isinstance(first.padding, str) else (first.padding[0], first.padding[1]),
            bias=first.bias is not None,
        ),
    )


def _set_submodule(network: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, replacement)


@torch.no_grad()
def _num_outputs(name: str, network: nn.Module, num_channels: int) -> int:
    """Ask the network itself, in evaluation mode, on one image of the size that it was made for.

    Raises ConfigurationError where it takes none.
    """
    network.eval()
    _, height, width = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))  # timm tells it
    try:
        outputs = network(torch.zeros(1, num_channels, height, width))
    except Exception as error:  # each network says in its own way what it lacks
        raise ConfigurationError(f"network.backbone: {name} does not take an image: {error}") from None
    if outputs.ndim != 2:
        raise ConfigurationError(f"network.backbone: {name} has no vector of features, but {tuple(outputs.shape)}")
    network.train()
    return int(outputs.shape[1])


BACKBONES: dict[str, Callable[[int, int], Backbone]] = {
    "small28": _small28,
    "threshold28": _threshold28,
    "small32": _small32,
    "early32": _early32,
    "conv13": _conv13,
    "resnet20": _resnet20,
}
