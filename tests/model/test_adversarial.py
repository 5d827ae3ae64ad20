from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from model.adversarial import attacked, ramp
from model.backbones import Backbone, build_backbone
from model.checkpoint import Checkpoint
from model.config import AdversarialConfig, Config, parse_config
from model.data import load_splits
from model.image_set import to_unit
from model.network import Network
from model.network_config import MixtureConfig, NetworkConfig
from model.train import train
from model.training_log import Report, Silent

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


def tiny(*, epochs: int = 2, **adversarial: Any) -> Config:
    return parse_config(
        {
            "name": "tiny",
            "data": {"name": "digits"},
            "network": {"backbone": "small28", "width": 4, "num_features": 8},
            "adversarial": adversarial,
            "optimizer": {"learning_rate": 0.05},
            "training": {"epochs": epochs, "batch_size": 64},
        }
    )


def network(backbone: str = "small28", *, classes: int = 5) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, width=4, num_features=6)
    return Network(config, MixtureConfig(), num_classes=classes, num_channels=1)


def linear_network() -> Network:
    """Two classes of unit variance over a linear map of the pixels: the log odds are linear in the image."""
    model = network(classes=2)
    model.backbone = Backbone([nn.Flatten()], 64)
    model.embedding = nn.Linear(64, 6)
    return model


def batch(count: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((count, 1, 8, 8), generator=generator)
    return images, torch.randint(classes, (count,), generator=generator)


def attack(model: Network, config: AdversarialConfig, *, epoch: float = 9.0, seed: int = 2) -> Tensor:
    images, labels = batch(classes=model.mixture.num_classes)
    generator = torch.Generator().manual_seed(seed)
    return attacked(model, images, labels, config, epoch=epoch, generator=generator)


def assert_same_weights(first: Checkpoint, second: Checkpoint) -> None:
    for name, values in first.network.items():
        assert torch.equal(values, second.network[name]), name


@pytest.mark.parametrize("random_start", [True, False])
def test_of_a_linear_network_the_worst_image_is_found(random_start: bool) -> None:
    """Every pixel goes eps against its weight in the log odds, or to the edge of [0, 1]."""
    model = linear_network()
    images, labels = batch(classes=2)
    odds = (model.mixture.means[1] - model.mixture.means[0]) @ model.embedding.weight
    away = torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1) * odds.sign().view(1, 1, 8, 8)
    found = attack(model, AdversarialConfig(eps=0.2, steps=5, random_start=random_start))
    assert torch.allclose(found, (images + 0.2 * away).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7])
def test_torchattacks_finds_the_same(steps: int) -> None:
    model = network().eval()
    images, labels = batch()

    class Logits(nn.Module):
        def forward(self, asked: Tensor) -> Tensor:
            log_joint: Tensor = model(asked).log_joint
            return log_joint

    oracle = torchattacks.PGD(Logits().eval(), eps=0.1, alpha=0.03, steps=steps, random_start=False)
    oracle.set_device("cpu")
    found = attack(model, AdversarialConfig(eps=0.1, steps=steps, step_size=0.03, random_start=False))
    assert torch.allclose(found, oracle(images, labels), atol=1e-6)


@pytest.mark.parametrize("eps", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("random_start", [True, False])
def test_what_is_found_is_in_the_budget_and_costs_more(eps: float, random_start: bool) -> None:
    model = network()
    images, labels = batch()
    found = attack(model, AdversarialConfig(eps=eps, random_start=random_start))
    assert float((found - images).abs().max()) <= eps + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not found.requires_grad
    model.eval()
    clean, worse = (nn.functional.cross_entropy(model(asked).log_joint, labels) for asked in (images, found))
    assert worse > clean


def test_the_step_is_two_and_a_half_budgets_over_the_steps_unless_given() -> None:
    """One step from the image itself moves by the step, which is where eps and [0, 1] do not bind."""
    images, _ = batch()
    inner = (images > 0.2) & (images < 0.8)
    default = attack(network(), AdversarialConfig(eps=0.2, steps=4, random_start=False))
    explicit = attack(network(), AdversarialConfig(eps=0.2, steps=4, step_size=0.125, random_start=False))
    assert torch.equal(default, explicit)
    single = attack(network(), AdversarialConfig(eps=0.2, steps=1, step_size=0.05, random_start=False))
    assert torch.allclose((single - images).abs()[inner], torch.tensor(0.05), atol=1e-6)


def test_the_random_start_comes_from_the_generator_alone() -> None:
    config = AdversarialConfig(eps=0.1, steps=1, step_size=0.01)
    torch.manual_seed(0)
    first = attack(network(), config)
    torch.manual_seed(1)
    assert torch.equal(attack(network(), config), first)
    assert not torch.equal(attack(network(), config, seed=3), first)


@pytest.mark.parametrize(
    ("config", "drawn"),
    [
        (AdversarialConfig(eps=0.1), True),
        (AdversarialConfig(eps=0.1, random_start=False), False),
        (AdversarialConfig(), False),
    ],
)
def test_chance_is_drawn_only_where_it_is_needed(config: AdversarialConfig, drawn: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = batch()
    model = network()
    process = torch.get_rng_state()
    attacked(model, images, labels, config, epoch=1.0, generator=generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state()) != drawn
    assert torch.equal(torch.get_rng_state(), process)


def test_off_gives_the_batch_itself() -> None:
    images, labels = batch()
    generator = torch.Generator()
    assert attacked(network(), images, labels, AdversarialConfig(), epoch=3.0, generator=generator) is images
    ramped = AdversarialConfig(eps=0.1, ramp_epochs=2.0)
    assert attacked(network(), images, labels, ramped, epoch=0.0, generator=generator) is images


def test_the_budget_grows_in_a_straight_line() -> None:
    config = AdversarialConfig(eps=0.2, ramp_epochs=4.0)
    assert [ramp(config, epoch) for epoch in (0.0, 1.0, 3.0, 4.0, 9.0)] == [0.0, 0.25, 0.75, 1.0, 1.0]
    assert ramp(AdversarialConfig(eps=0.2), 0.0) == 1.0
    full = attack(network(), AdversarialConfig(eps=0.05, step_size=0.01))
    halfway = attack(network(), AdversarialConfig(eps=0.1, step_size=0.02, ramp_epochs=4.0), epoch=2.0)
    assert torch.equal(halfway, full)


@pytest.mark.parametrize(("share", "num_clean"), [(0.0, 0), (0.25, 3), (0.5, 6), (0.99, 12)])
def test_the_clean_share_is_left_as_it_is(share: float, num_clean: int) -> None:
    images, _ = batch()
    found = attack(network(), AdversarialConfig(eps=0.1, clean_share=share))
    changed = (found != images).flatten(1).any(1)
    assert changed.tolist() == [row >= num_clean for row in range(12)]


def test_attacks_are_made_in_evaluation_mode_and_leave_nothing_behind() -> None:
    config = AdversarialConfig(eps=0.1, steps=3)
    model = network().train()
    model.backbone.stages[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: values.clone() for name, values in model.state_dict().items()}
    found = attack(model, config)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name
    assert torch.equal(attack(model.eval(), config), found)


def test_a_gradient_that_is_there_stays() -> None:
    model = network()
    model.mixture.means.grad = torch.ones_like(model.mixture.means)
    attack(model, AdversarialConfig(eps=0.1))
    assert torch.equal(model.mixture.means.grad, torch.ones_like(model.mixture.means))


def test_modes_are_restored_after_an_error() -> None:
    model = network().train()
    images, _ = batch()
    labels = torch.full((12,), 77)
    with pytest.raises(IndexError):
        attacked(model, images, labels, AdversarialConfig(eps=0.1), epoch=1.0, generator=torch.Generator())
    assert all(module.training for module in model.modules())


def test_off_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    plain = train(tiny(epochs=1), tmp_path / "plain", Silent())
    off = train(tiny(epochs=1, eps=0.0, steps=3, clean_share=0.5, ramp_epochs=1.0), tmp_path / "off", Silent())
    assert_same_weights(plain, off)


class Interrupting(Silent):
    """Stops the run in the middle of its second epoch."""

    def step(self, epoch: int, step: int, report: Report) -> None:
        if (epoch, step) == (1, 5):
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_to_the_same_end_bit_for_bit(tmp_path: Path) -> None:
    config = tiny(eps=0.1, steps=2, ramp_epochs=1.5, clean_share=0.25)
    whole = train(config, tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", Interrupting())
    assert_same_weights(train(config, tmp_path / "stopped", Silent()), whole)


def robust_accuracy(eps: float, folder: Path) -> float:
    """Share of test digits that stay right within 0.1, of a network trained with that eps."""
    checkpoint = train(tiny(epochs=6, eps=eps, steps=2), folder, Silent())
    test, model = load_splits(checkpoint.config.data).test, checkpoint.build_network().eval()
    strong, generator = AdversarialConfig(eps=0.1, steps=10), torch.Generator().manual_seed(0)
    found = attacked(model, to_unit(test.images), test.labels, strong, epoch=1.0, generator=generator)
    with torch.no_grad():
        return float((model(found).log_joint.argmax(1) == test.labels).float().mean())


def test_training_on_attacked_images_makes_robust(tmp_path: Path) -> None:
    plain, robust = (robust_accuracy(eps, tmp_path / str(eps)) for eps in (0.0, 0.1))
    assert robust > plain + 0.2


def threshold_stage(*, temperature_above_floor: float) -> nn.Module:
    stage = build_backbone("threshold28", num_channels=1, width=4).stages[0]
    with torch.no_grad():
        stage.get_parameter("log_temperature").fill_(temperature_above_floor).log_()
    return stage


@pytest.mark.parametrize("above_floor", [0.0, 0.22])
def test_the_threshold_is_a_sigmoid_whose_gradient_vanishes_nowhere(above_floor: float) -> None:
    """Every grey value of [0, 1], normalised as MNIST is, against float64; exp(log 0) = 0 leaves the floor."""
    stage = threshold_stage(temperature_above_floor=above_floor)
    images = torch.linspace(0, 1, 1001).view(1, 1, 7, 143).requires_grad_()
    outputs = stage((images - MNIST_MEAN) / MNIST_STD)
    (gradient,) = torch.autograd.grad(outputs.sum(), images)
    temperature = 0.1 + above_floor
    distance = ((images.detach().double() - MNIST_MEAN) / MNIST_STD - 1.2) / temperature
    expected = torch.sigmoid(distance)
    slope = expected * torch.sigmoid(-distance) / (temperature * MNIST_STD)
    assert torch.allclose(outputs.double(), expected, rtol=1e-4)
    assert torch.allclose(gradient.double(), slope, rtol=1e-3, atol=0)
    assert bool((gradient > 0).all())


def test_the_threshold_starts_at_half_and_a_tenth_of_mnist_s_grey() -> None:
    stage = build_backbone("threshold28", num_channels=1, width=4).stages[0]
    half, above = (torch.full((1, 1, 1, 1), (grey - MNIST_MEAN) / MNIST_STD) for grey in (0.5, 0.6))
    assert stage(half).item() == pytest.approx(0.5, abs=0.02)
    assert stage(above).item() == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.02)


def test_every_parameter_of_the_threshold_learns() -> None:
    model = network("threshold28")
    images, labels = batch()
    loss = nn.functional.cross_entropy(model(images).log_joint, labels)
    parameters = list(model.backbone.stages[0].parameters())
    assert len(parameters) == 2
    assert all(bool((gradient != 0).all()) for gradient in torch.autograd.grad(loss, parameters))
