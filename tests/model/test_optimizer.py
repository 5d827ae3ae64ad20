import math
from typing import Any

import pytest
import torch

from model.config import OptimizerConfig
from model.network import Network
from model.network_config import MixtureConfig, NetworkConfig
from model.optimizer import build_optimizer, clip_gradient, learning_rate, set_learning_rate


def network(**mixture: Any) -> Network:
    torch.manual_seed(0)
    backbone = NetworkConfig(backbone="small28", width=4, num_features=6)
    return Network(backbone, MixtureConfig(**mixture), num_classes=5, num_channels=1)


MIXTURES: list[dict[str, Any]] = [
    {},
    {"variance": "isotropic"},
    {"variance": "diagonal", "prior": "learned"},
    {"prior": "learned"},
    {"prior": "counts"},
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_parameter_is_in_exactly_one_group(mixture: dict[str, Any], name: str) -> None:
    model = network(**mixture)
    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert all(group["params"] for group in optimizer.param_groups)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_weight_decay_and_multipliers_reach_only_their_own(mixture: dict[str, Any]) -> None:
    model = network(**mixture)
    config = OptimizerConfig(weight_decay=0.01, means_multiplier=3.0, variances_multiplier=0.5)
    groups = build_optimizer(model, config).param_groups
    for name, parameter in model.named_parameters():
        (group,) = [group for group in groups if any(parameter is member for member in group["params"])]
        weight = parameter.ndim > 1 and not name.startswith("mixture.")
        assert group["weight_decay"] == (0.01 if weight else 0.0), name
        expected = 3.0 if name == "mixture.means" else 0.5 if name.startswith("mixture.") else 1.0
        assert group["multiplier"] == expected, name


def test_the_kinds_of_optimiser() -> None:
    sgd = build_optimizer(network(), OptimizerConfig(momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert all(group["momentum"] == 0.8 and group["nesterov"] for group in sgd.param_groups)
    plain = build_optimizer(network(), OptimizerConfig(momentum=0.0))
    assert not any(group["nesterov"] for group in plain.param_groups)
    adamw = build_optimizer(network(), OptimizerConfig(name="adamw", momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert all(group["betas"] == (0.8, 0.999) for group in adamw.param_groups)


def test_rates_are_multiples() -> None:
    optimizer = build_optimizer(network(variance="isotropic"), OptimizerConfig(means_multiplier=2.0))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 1.0, pytest.approx(0.05)]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.3 * 1 / 11),  # warm-up of 10 steps, from one eleventh on
        (9, 0.3 * 10 / 11),
        (10, 0.3),  # the top of the cosine
        (25, 0.3 * 0.5 * (1 + math.cos(math.pi / 2))),
        (30, 0.3 * 0.5 * (1 + math.cos(math.pi * 20 / 30))),
        (39, 0.3 * 0.5 * (1 + math.cos(math.pi * 29 / 30))),
    ],
)
def test_one_cycle_by_hand(step: int, expected: float) -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=1.0)
    assert learning_rate(config, step, steps_per_epoch=10, epochs=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.3), (19, 0.3), (20, 0.03), (29, 0.03), (30, 0.003), (1000, 0.003)]
)
def test_steps_by_hand(step: int, expected: float) -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=0.0, schedule="steps", milestones=(2, 3))
    assert learning_rate(config, step, steps_per_epoch=10, epochs=4) == pytest.approx(expected)


def test_steps_begin_with_the_warm_up() -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=0.5, schedule="steps", milestones=(2,))
    rates = [learning_rate(config, step, steps_per_epoch=10, epochs=4) for step in (0, 4, 5)]
    assert rates == pytest.approx([0.05, 0.25, 0.3])


def test_a_warm_up_longer_than_the_run_only_climbs() -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=9.0)
    rates = [learning_rate(config, step, steps_per_epoch=10, epochs=4) for step in range(40)]
    assert rates == sorted(rates)
    assert rates[-1] < 0.3


def test_a_gradient_is_clipped_to_its_norm_only_where_configured() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    clip_gradient(model, OptimizerConfig())
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    clip_gradient(model, OptimizerConfig(clip_gradient_norm=2.0))
    after = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    assert before > 2.0
    assert after == pytest.approx(2.0, rel=1e-3)
