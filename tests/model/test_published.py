"""Published settings: their schedules are those published, and each takes a step."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import model
from model.checkpoint import build_network
from model.config import load_config
from model.criterion import build_criterion
from model.epoch import train_epoch
from model.image_set import ImageSet
from model.images import ImageFormat
from model.loss_config import build_schedule
from model.optimizer import build_optimizer, learning_rate
from model.training_log import Silent

CONFIGS = Path(model.__file__).parent / "configs"
SHAPES = {
    "mnist-2d": ((1, 28, 28), 10),
    "mnist-100d": ((1, 28, 28), 10),
    "cifar10-resnet20": ((3, 32, 32), 10),
    "cifar100-conv13": ((3, 32, 32), 100),
    "imagenet-resnet50": ((3, 224, 224), 1000),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_setting_takes_a_step(name: str) -> None:
    shape, num_classes = SHAPES[name]
    config = load_config(CONFIGS / f"{name}.toml", ["training.batch_size=2", "training.precision=float32"])
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(
        images=torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator),
        labels=torch.tensor([0, num_classes - 1]),
        class_names=tuple(str(index) for index in range(num_classes)),
    )
    torch.manual_seed(0)
    network = build_network(config, images.class_names, ImageFormat(shape=shape))
    before = network.mixture.means.detach().clone()
    criterion = build_criterion(config.loss, network, images.class_names, steps_per_epoch=1)
    optimizer = build_optimizer(network, config.optimizer)
    report = train_epoch(network, criterion, optimizer, images, config, 0, Silent())
    assert math.isfinite(report.figures()["loss"])
    assert criterion.step == 1
    assert not torch.equal(network.mixture.means, before)


def test_cifar_100_has_the_published_course() -> None:
    config = load_config(CONFIGS / "cifar100-conv13.toml")
    steps_per_epoch = math.ceil(45_000 / 128)
    alpha = build_schedule(config.loss.alpha, steps_per_epoch)
    assert [alpha(step) for step in (0, 4_999, 5_000, 9_999, 10_000, 119_999)] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    rates = [
        learning_rate(config.optimizer, step, steps_per_epoch=steps_per_epoch, epochs=config.training.epochs)
        for step in (0, 59_000, 60_500, 89_500, 90_500)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert abs(config.training.epochs * steps_per_epoch - 120_000) < steps_per_epoch


@pytest.mark.parametrize("name", ["mnist-2d", "mnist-100d"])
def test_mnist_is_ramped_over_five_epochs(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml")
    for schedule, stop, first in ((config.loss.alpha, 1.0, 0.1), (config.loss.lambda_, 0.1, 0.001)):
        course = build_schedule(schedule, 844)
        assert [course(step) for step in (0, 5 * 844, 10**6)] == pytest.approx([first, stop, stop])


def test_thirteen_convolutions() -> None:
    config = load_config(CONFIGS / "cifar100-conv13.toml")
    network = build_network(config, tuple("ab"), ImageFormat(shape=(3, 32, 32)))
    kernels = [layer for layer in network.backbone.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in kernels] == [96] * 5 + [192] * 4 + [384] * 4
    assert network.mixture.num_features == replace(config.network).num_features == 384
