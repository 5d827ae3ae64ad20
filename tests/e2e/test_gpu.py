"""The same answers on a CUDA device as on a CPU; these tests need one."""

from pathlib import Path

import pytest
import torch

from detectors import Screener, load_bundle
from model import GaussianMixture, LGMLoss
from model.config import Config, parse_config
from model.config import dump_config as dump
from model.train import train
from model.training_log import Silent

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("variance", ["unit", "isotropic", "diagonal"])
def test_the_loss_and_its_gradients_are_those_of_the_cpu(variance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 32, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    found = {}
    for device in ("cpu", "cuda"):
        mixture = GaussianMixture(10, 32, variance=variance, generator=torch.Generator().manual_seed(1)).to(device)
        moved = features.to(device).requires_grad_()
        terms = LGMLoss(mixture, alpha=0.3, lambda_=0.1)(moved, labels.to(device))
        terms.total.backward()
        gradients = [moved.grad, *(parameter.grad for parameter in mixture.parameters())]
        found[device] = [terms.total.detach().cpu(), *(g.cpu() for g in gradients if g is not None)]
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-4, atol=1e-5)


def test_a_network_trains(digits_config: Config, tmp_path: Path) -> None:
    values = dump(digits_config)
    values["training"]["device"] = "cuda"
    assert (train(parse_config(values), tmp_path / "run", Silent()).test_accuracy or 0) > 0.9


def test_a_bundle_reproduces_its_scores(digits_bundle: Path, digits_screener: Screener) -> None:
    screener = load_bundle(digits_bundle, "cuda")
    screener.self_test()
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found, expected = screener.screen(images), digits_screener.screen(images)
    torch.testing.assert_close(found.log_likelihood.cpu(), expected.log_likelihood, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.class_index.cpu(), expected.class_index)
