"""FGSM and BIM of our own against torchattacks'."""

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from detectors.perturbation import bim, fgsm

EPS = 0.1
STEPS = 5


@pytest.fixture(scope="module")
def logits() -> nn.Module:
    """Whose gradient is nowhere zero, so that no sign is a matter of taste."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Some at the very ends of [0, 1]."""
    return (1.4 * torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.2).clamp(0, 1)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(16) % 5


def test_fgsm_is_torchattacks(logits, images, labels):
    torch.testing.assert_close(fgsm(logits, images, labels, eps=EPS), torchattacks.FGSM(logits, EPS)(images, labels))


@pytest.mark.parametrize("step_size", [EPS / 4, EPS / 2])
def test_bim_is_torchattacks(logits, images, labels, step_size):
    ours = bim(logits, images, labels, eps=EPS, steps=STEPS, step_size=step_size)
    theirs = torchattacks.BIM(logits, eps=EPS, alpha=step_size, steps=STEPS)(images, labels)
    torch.testing.assert_close(ours, theirs)


def test_one_full_step_of_bim_is_fgsm(logits, images, labels):
    once = bim(logits, images, labels, eps=EPS, steps=1, step_size=EPS)
    torch.testing.assert_close(once, fgsm(logits, images, labels, eps=EPS))


def test_nothing_leaves_the_budget_nor_the_range(logits, images, labels):
    for attacked in (
        fgsm(logits, images, labels, eps=EPS),
        bim(logits, images, labels, eps=EPS, steps=STEPS, step_size=EPS),
    ):
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert (attacked - images).abs().max() <= EPS + 1e-6
        assert not attacked.requires_grad


def test_a_frozen_network_can_be_attacked_where_gradients_are_off(digits_screener):
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        attacked = fgsm(lambda given: digits_screener.network(given).log_joint, images, torch.tensor([0, 1]), eps=EPS)
    assert (attacked != images).any()
