import copy
import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from detectors import Screener
from detectors.evaluation import attacks
from detectors.evaluation.attacks import ATTACKS, AttackError, AttackSpec, check_attack, run_attack, target_labels
from detectors.evaluation.threat import BUDGET_TOLERANCE, confine, perturbation_norm, random_start, undisturbed
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from model.network import Network
from model.network_config import MixtureConfig, NetworkConfig

EPS = {"linf": 0.15, "l2": 0.8, "none": None}
FEW = 4  # steps, where strength does not matter


@pytest.fixture(scope="module")
def network(digits_screener: Screener) -> Network:
    return digits_screener.network


@pytest.fixture(scope="module")
def batch(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """64 test images with their labels."""
    test = load_splits(digits_checkpoint.config.data).test
    return to_unit(test.images[:64]), test.labels[:64]


def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(images).log_joint.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("spec", ATTACKS.values(), ids=lambda spec: spec.name)
def test_every_attack_keeps_the_contract(spec: AttackSpec, network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:6] for tensor in batch)
    given, names = images.clone(), labels.clone()
    modes = {name: module.training for name, module in network.named_modules()}
    needs = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    found = run_attack(network, spec.name, images, labels, eps=EPS[spec.norm], steps=FEW, seed=3)
    assert (found.shape, found.dtype, found.requires_grad) == (images.shape, torch.float32, False)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    if (eps := EPS[spec.norm]) is not None:
        assert float(perturbation_norm(found - images, spec.norm).max()) <= eps + BUDGET_TOLERANCE
    assert torch.equal(images, given)
    assert torch.equal(labels, names)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == needs
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert torch.equal(found, run_attack(network, spec.name, images, labels, eps=eps, steps=FEW, seed=3))


@pytest.mark.parametrize("spec", [spec for spec in ATTACKS.values() if spec.white_box], ids=lambda spec: spec.name)
def test_every_gradient_attack_takes_a_colour_network_in_its_fast_layout(spec: AttackSpec) -> None:
    """Of several channels a network whose weights are channels-last gives gradients that are no rows."""
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(backbone="small28", width=4, num_features=8), MixtureConfig(), num_classes=5, num_channels=3
    )
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images, labels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 4])
    found = run_attack(network, spec.name, images, labels, eps=EPS[spec.norm], steps=2, seed=3)
    assert found.shape == images.shape
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_costs_accuracy(name: str, network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """Digits are 98 % right; at this eps each attack at its own number of steps takes at least a sixth of that."""
    images, labels = (tensor[:24] for tensor in batch)
    found = run_attack(network, name, images, labels, eps=EPS[ATTACKS[name].norm])
    assert accuracy(network, images, labels) > 0.9
    assert accuracy(network, found, labels) < 0.82


@pytest.mark.parametrize("name", ["bim", "pgd", "pgd-l2", "apgd", "autoattack"])
def test_strong_attacks_leave_nothing(name: str, network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    eps = {"linf": 0.25, "l2": 1.5}[ATTACKS[name].norm]
    assert accuracy(network, run_attack(network, name, images, labels, eps=eps), labels) < 0.05


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_smallest_perturbations_succeed_and_are_small(
    name: str, network: Network, batch: tuple[Tensor, Tensor]
) -> None:
    """Without a shift above zero CW sees no other class in a log joint, and without a push DeepFool stops short."""
    images, labels = (tensor[:32] for tensor in batch)
    found = run_attack(network, name, images, labels, eps=None)
    assert accuracy(network, found, labels) < 0.05
    lengths = perturbation_norm(found - images, "l2")
    full = perturbation_norm(run_attack(network, "pgd-l2", images, labels, eps=1.0) - images, "l2")
    assert float(lengths.mean()) < 0.7 * float(full.mean())


def test_fgsm_is_its_formula(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """x + eps sign(grad of cross entropy), clipped, by a copy in double precision; tiny gradients may differ."""
    images, labels = batch
    asked = images.double().requires_grad_()
    double = copy.deepcopy(network).double()
    normalised = double.normalise(asked)
    features = double.embedding(double.backbone(normalised))
    loss = nn.functional.cross_entropy(double.mixture(features).double(), labels)
    (gradient,) = torch.autograd.grad(loss, asked)
    expected = (images + 0.1 * gradient.sign()).clamp(0, 1)
    clear = gradient.abs() > 1e-4 * gradient.abs().amax((1, 2, 3), keepdim=True)
    found = run_attack(network, "fgsm", images, labels, eps=0.1)
    assert float(clear.double().mean()) > 0.9
    assert torch.allclose(found.double()[clear], expected[clear], atol=1e-6)


def test_bim_of_one_step_is_fgsm(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    bim, fgsm = (run_attack(network, name, images, labels, eps=0.1, steps=1) for name in ("bim", "fgsm"))
    assert torch.allclose(bim, fgsm, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "pgd-l2", "bim", "mifgsm"])
def test_more_steps_are_not_weaker(name: str, network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """40 against 5 steps on 64 images, where three images may go the other way by chance."""
    images, labels = batch
    eps = {"linf": 0.08, "l2": 0.4}[ATTACKS[name].norm]
    few, many = (run_attack(network, name, images, labels, eps=eps, steps=steps) for steps in (5, 40))
    assert accuracy(network, many, labels) <= accuracy(network, few, labels) + 3 / 64


def test_gradients_beat_queries(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:32] for tensor in batch)
    white, black = (run_attack(network, name, images, labels, eps=0.08, steps=100) for name in ("apgd", "square"))
    assert accuracy(network, white, labels) <= accuracy(network, black, labels)
    assert not ATTACKS["square"].white_box
    assert ATTACKS["apgd"].white_box


@pytest.mark.parametrize("name", [spec.name for spec in ATTACKS.values() if spec.targeted_ok and spec.steps])
def test_targeted_attacks_reach_their_targets(name: str, network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """More often than attacks that only leave the class, which hit a class chosen at random one time in nine."""
    images, labels = (tensor[:24] for tensor in batch)
    targets = target_labels(labels, 10, seed=5)
    eps = {"linf": 0.3, "l2": 1.5, "none": None}[ATTACKS[name].norm]
    found = run_attack(network, name, images, labels, eps=eps, targeted=True, seed=5)
    assert accuracy(network, found, targets) > 0.3


def test_targets_are_wrong_even_and_the_same_for_a_seed() -> None:
    labels = torch.arange(10).repeat(900)
    targets = target_labels(labels, 10, seed=1)
    assert torch.equal(targets, target_labels(labels, 10, seed=1))
    assert not torch.equal(targets, target_labels(labels, 10, seed=2))
    assert bool((targets != labels).all())
    counts = torch.bincount(labels * 10 + targets, minlength=100).view(10, 10)
    assert counts.diagonal().sum() == 0
    assert int(counts[~torch.eye(10, dtype=torch.bool)].min()) > 60  # of 100 expected


def test_seeds_matter_where_an_attack_is_random(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:4] for tensor in batch)
    first, second = (run_attack(network, "pgd", images, labels, eps=0.1, steps=1, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_caller_without_gradients_may_attack(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:4] for tensor in batch)
    expected = run_attack(network, "bim", images, labels, eps=0.1)
    with torch.inference_mode():
        inside = run_attack(network, "bim", images.clone(), labels.clone(), eps=0.1)
    assert torch.equal(expected, inside)


def test_modes_and_flags_are_restored_each_by_itself(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """Also after an error inside; torchattacks alone would put the whole network into training."""
    images, labels = (tensor[:4] for tensor in batch)
    mixed = copy.deepcopy(network)
    mixed.requires_grad_(True).train()
    mixed.backbone.eval()
    mixed.embedding.requires_grad_(False)
    modes = [module.training for module in mixed.modules()]
    needs = [parameter.requires_grad for parameter in mixed.parameters()]
    assert len(set(modes)) == len(set(needs)) == 2
    run_attack(mixed, "pgd", images, labels, eps=0.1, steps=2)
    with pytest.raises(RuntimeError):
        run_attack(mixed, "pgd", images.expand(-1, 3, -1, -1), labels, eps=0.1, steps=2)
    assert [module.training for module in mixed.modules()] == modes
    assert [parameter.requires_grad for parameter in mixed.parameters()] == needs


def test_an_attack_runs_in_evaluation_mode_with_frozen_parameters_and_its_seed(network: Network) -> None:
    training = copy.deepcopy(network).train()
    state = torch.get_rng_state()
    with undisturbed(training, seed=4):
        assert not any(module.training for module in training.modules())
        assert not any(parameter.requires_grad for parameter in training.parameters())
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(state, torch.get_rng_state())


def test_an_attack_judges_the_network_as_it_is_served(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """Batch statistics of training mode would give other images, and would change the network."""
    images, labels = (tensor[:8] for tensor in batch)
    training = copy.deepcopy(network).train()
    state = {name: value.clone() for name, value in training.state_dict().items()}
    found = run_attack(training, "bim", images, labels, eps=0.1)
    assert torch.equal(found, run_attack(network, "bim", images, labels, eps=0.1))
    assert all(torch.equal(value, state[name]) for name, value in training.state_dict().items())


def test_confident_networks_keep_their_gradient(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    """A log joint ten times as far apart rounds posteriors to one; cross entropy must go on pointing the same way."""
    images, labels = batch
    sure = copy.deepcopy(network)
    with torch.no_grad():
        gap = network(images).log_joint.topk(2, 1).values
    right = (network(images).log_joint.argmax(1) == labels) & ((gap[:, 0] - gap[:, 1]) > 4)
    sure.embedding.weight.data *= 2.5
    sure.embedding.bias.data *= 2.5
    sure.mixture.means.data *= 2.5
    images, labels = images[right], labels[right]
    found = run_attack(sure, "fgsm", images, labels, eps=0.1)
    plain = run_attack(network, "fgsm", images, labels, eps=0.1)
    moved = (found - images).flatten(1).abs().sum(1) > 0
    assert bool(moved.all())
    assert accuracy(sure, found, labels) <= accuracy(network, plain, labels) + 0.1


class Overstepping:
    """An attack that breaks its budget on the first image, leaves [0, 1] on the second, gives NaN on the third."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        found = images.clone()
        found[0] = (found[0] + 0.5).clamp(max=1)
        found[1] = -0.05
        found[2] = torch.nan
        found[3] = (found[3] + 0.1).clamp(max=1)
        return found


def test_a_broken_budget_is_told_and_mended(
    network: Network,
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, labels = (tensor[:5] for tensor in batch)
    row = replace(ATTACKS["fgsm"], name="overstepping", build=lambda model, plan: Overstepping())
    monkeypatch.setitem(attacks.ATTACKS, "overstepping", row)
    with caplog.at_level(logging.WARNING):
        found = run_attack(network, "overstepping", images, labels, eps=0.1)
    assert "overstepping broke its budget or gave no numbers for 3 of 5 images" in caplog.text
    assert float(perturbation_norm(found - images, "linf").max()) <= 0.1 + BUDGET_TOLERANCE
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found[2], images[2])
    assert torch.equal(found[3], (images[3] + 0.1).clamp(max=1))


def test_no_shipped_attack_breaks_its_budget(
    network: Network, batch: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = (tensor[:4] for tensor in batch)
    with caplog.at_level(logging.WARNING):
        for spec in ATTACKS.values():
            run_attack(network, spec.name, images, labels, eps=EPS[spec.norm], steps=2)
    assert caplog.text == ""


def test_a_new_attack_is_one_row(
    network: Network, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (tensor[:8] for tensor in batch)
    row = AttackSpec(
        name="jitter",
        norm="linf",
        steps=10,
        build=lambda model, plan: torchattacks.Jitter(model, eps=plan.eps, alpha=plan.step_size, steps=plan.steps),
    )
    monkeypatch.setitem(attacks.ATTACKS, "jitter", row)
    found = run_attack(network, "jitter", images, labels, eps=0.2)
    assert float(perturbation_norm(found - images, "linf").max()) <= 0.2 + BUDGET_TOLERANCE


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_confine_and_random_start_stay_in_the_ball(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((50, 3, 6, 6), generator=generator)
    start = random_start(images, eps=0.3, norm=norm, generator=generator)
    sizes = perturbation_norm(start - images, norm)
    assert float(sizes.max()) <= 0.3 + BUDGET_TOLERANCE
    assert float(sizes.max()) > 0.2
    far = confine(images + torch.randn(images.shape, generator=generator), images, eps=0.3, norm=norm)
    assert float(perturbation_norm(far - images, norm).max()) <= 0.3 + BUDGET_TOLERANCE
    near = (images + 1e-3).clamp(0, 1)
    assert torch.allclose(confine(near, images, eps=0.3, norm=norm), near, atol=1e-7)


def test_norms_are_those_of_numpy() -> None:
    change = torch.randn((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    rows = change.flatten(1).numpy()
    assert np.allclose(perturbation_norm(change, "linf"), np.abs(rows).max(1))
    assert np.allclose(perturbation_norm(change, "l2"), np.sqrt((rows**2).sum(1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "eps", "targeted", "said"),
    [
        ("fgms", 0.1, False, r"unknown attack 'fgms'; there are fgsm, bim, pgd, "),
        ("pgd", None, False, r"pgd needs eps, its linf budget"),
        ("pgd", 0.0, False, r"above 0 and finite, got 0.0"),
        ("pgd", -0.1, False, r"above 0 and finite, got -0.1"),
        ("pgd-l2", float("nan"), False, r"above 0 and finite, got nan"),
        ("pgd-l2", float("inf"), False, r"above 0 and finite, got inf"),
        ("pgd", 8.0, False, r"must lie in \(0, 1\], got 8.0: .*so 8 is 8/255"),
        ("cw", 0.1, False, r"cw seeks the smallest perturbation and takes no eps, got 0.1"),
        ("deepfool", None, True, r"deepfool has no targeted version; those that have: fgsm, bim"),
    ],
)
def test_what_cannot_be_run_is_refused(name: str, eps: float | None, targeted: bool, said: str) -> None:
    with pytest.raises(AttackError, match=said):
        check_attack(name, eps, targeted=targeted)


def test_what_can_be_run_is_told() -> None:
    assert check_attack("pgd", 1.0).norm == "linf"
    assert check_attack("pgd-l2", 3.0).norm == "l2"
    assert check_attack("deepfool", None).norm == "none"


def test_a_batch_that_does_not_fit_is_refused(network: Network, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (tensor[:3] for tensor in batch)
    wrong = [
        (images[:0], labels[:0], "floats"),
        (images[0], labels, "floats"),
        ((images * 255).byte(), labels, r"torch.uint8"),
        (images * 255, labels, r"not in \[0, 1\]"),
        (torch.full_like(images, torch.nan), labels, r"not in \[0, 1\]"),
        (images, labels[:2], r"labels must be int64 \(3,\)"),
        (images, labels.float(), r"labels must be int64"),
        (images, labels + 10, r"0 to 9"),
        (images, labels - 10, r"0 to 9"),
    ]
    for given, names, said in wrong:
        with pytest.raises(AttackError, match=said):
            run_attack(network, "fgsm", given, names, eps=0.1)
    with pytest.raises(AttackError, match="at least 1 step, got 0"):
        run_attack(network, "pgd", images, labels, eps=0.1, steps=0)


@pytest.mark.parametrize(("name", "least"), [("autoattack", 4), ("apgdt", 4), ("apgd-dlr", 3)])
def test_some_attacks_need_several_classes(name: str, least: int) -> None:
    with pytest.raises(AttackError, match=f"{name} compares {least} classes; this network has {least - 1}"):
        attacks.check_num_classes(name, least - 1)
    attacks.check_num_classes(name, least)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"autoattack", "autoattack-l2", "apgdt", "apgd-dlr"}))
def test_every_other_attack_runs_on_two_classes(name: str) -> None:
    torch.manual_seed(0)
    small = NetworkConfig(backbone="small28", width=4, num_features=4)
    network = Network(small, MixtureConfig(), num_classes=2, num_channels=3).eval()
    images, labels = torch.rand((4, 3, 8, 8)), torch.tensor([0, 1, 0, 1])
    found = run_attack(network, name, images, labels, eps=EPS[ATTACKS[name].norm], steps=2)
    assert found.shape == images.shape
