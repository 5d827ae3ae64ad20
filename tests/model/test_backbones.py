import sys

import pytest
import torch
from torch import nn

from model.backbones import BACKBONES, UNSUITED, build_backbone
from model.errors import ConfigurationError
from model.network import Network, Normalise
from model.network_config import MixtureConfig, NetworkConfig

LIBRARY = ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:resnet10t"]


def network(backbone: str = "small28", *, channels: int = 1, classes: int = 5, features: int = 6) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, width=4, num_features=features)
    return Network(config, MixtureConfig(), num_classes=classes, num_channels=channels)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (32, 32)])
def test_our_own_take_images_of_every_size(name: str, channels: int, size: tuple[int, int]) -> None:
    backbone = build_backbone(name, num_channels=channels, width=4)
    outputs = backbone(torch.rand(2, channels, *size))
    assert outputs.shape == (2, backbone.num_outputs)


def test_resnet20_has_the_size_of_its_paper() -> None:
    """He et al. 2016, table 6: 0.27 million parameters (with a classifier of 64 x 10 + 10)."""
    backbone = build_backbone("resnet20", num_channels=3, width=16)
    assert num_parameters(backbone) + 650 == pytest.approx(0.27e6, rel=0.02)
    assert sum(isinstance(layer, nn.Conv2d) for layer in backbone.modules()) == 19
    assert backbone.num_outputs == 64


@pytest.mark.parametrize("name", BACKBONES)
def test_width_scales_the_parameters_by_its_square(name: str) -> None:
    narrow, wide = (num_parameters(build_backbone(name, num_channels=1, width=width)) for width in (16, 32))
    assert wide / narrow == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_the_libraries_are_cut_before_their_classifier(name: str, channels: int) -> None:
    backbone = build_backbone(name, num_channels=channels)
    assert backbone.training
    outputs = backbone(torch.rand(2, channels, 64, 64))
    assert outputs.shape == (2, backbone.num_outputs)
    assert not any(layer.out_features == 1000 for layer in backbone.modules() if isinstance(layer, nn.Linear))


def test_the_first_convolution_of_a_grey_network_keeps_its_form() -> None:
    first = next(
        layer
        for layer in build_backbone("torchvision:resnet18", num_channels=1).modules()
        if isinstance(layer, nn.Conv2d)
    )
    assert (first.in_channels, first.out_channels, first.kernel_size, first.stride) == (1, 64, (7, 7), (2, 2))
    assert first.bias is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "small64",
            "'small64' does not exist; there are: small28, threshold28, small32, early32, conv13, resnet20, torch",
        ),
        ("torchvision:resnet19", "no classifier 'resnet19'.*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'"),
        ("timm:resnet19", "timm has no network 'resnet19'"),
        ("keras:resnet18", "'keras' is not known; use torchvision:NAME or timm:NAME"),
        *[(f"torchvision:{name}", "that can be used") for name in sorted(UNSUITED)],
    ],
)
def test_an_unknown_name_is_told_what_there_is(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_backbone(name, num_channels=3)


def test_a_timm_network_of_a_size_of_its_own_is_asked_at_that_size() -> None:
    backbone = build_backbone("timm:vit_tiny_patch16_384", num_channels=1)
    assert backbone(torch.zeros(1, 1, 384, 384)).shape == (1, backbone.num_outputs)


def test_timm_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lgm-guard\[timm\]'"):
        build_backbone("timm:resnet10t", num_channels=3)


@pytest.mark.parametrize("backbone", [*BACKBONES, *LIBRARY])
def test_an_output_depends_on_its_own_image_alone(backbone: str) -> None:
    images = torch.rand(5, 1, 32, 32)
    model = network(backbone).eval()
    together, alone = model(images), model(images[2:3])
    assert torch.allclose(together.features[2:3], alone.features, rtol=1e-4, atol=1e-5)
    assert torch.allclose(together.log_joint[2:3], alone.log_joint, rtol=1e-4)


def test_normalisation_is_the_first_layer() -> None:
    model = network(channels=3).eval()
    images = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.3])
    expected = model(images).features
    model.normalise = Normalise(mean, std)
    changed = images * std.view(3, 1, 1) + mean.view(3, 1, 1)
    assert torch.allclose(model(changed).features, expected, atol=1e-4)


@pytest.mark.parametrize("backbone", ["small28", "resnet20"])
def test_outputs_are_float32_in_mixed_precision(backbone: str) -> None:
    model = network(backbone).eval()
    images = torch.rand(4, 1, 16, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images)
    assert rough.features.dtype == rough.log_joint.dtype == torch.float32
    assert torch.allclose(rough.features, exact.features, atol=0.1)
    assert not torch.equal(rough.features, exact.features)  # the backbone did run in bfloat16


def test_the_log_joint_is_the_mixture_s_of_the_features() -> None:
    model = network().eval()
    features, log_joint, _ = model(torch.rand(4, 1, 16, 16))
    assert features.shape == (4, 6)
    assert torch.equal(log_joint, model.mixture(features))


@pytest.mark.parametrize(
    ("backbone", "channels"), [("small28", [4, 8, 16]), ("small32", [4, 8, 16, 32]), ("resnet20", [4, 4, 8, 16])]
)
def test_every_stage_s_maps_are_tapped_by_their_means(backbone: str, channels: list[int]) -> None:
    model, images = network(backbone).eval(), torch.rand(3, 1, 32, 32)
    outputs, expected = model.normalise(images), []
    for stage in model.backbone.stages:
        outputs = stage(outputs)
        expected += [outputs.flatten(2).mean(2)] if outputs.ndim == 4 else []
    taps = model(images).taps
    assert [tap.shape[1] for tap in taps] == channels
    for tap, written_out in zip(taps, expected, strict=True):
        assert torch.allclose(tap, written_out, rtol=1e-4, atol=1e-5)
