"""Batch normalisation over processes: here one process, so that torch's own says what is right."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model.batch_norm import JoinedBatchNorm, joined
from model.errors import ConfigurationError


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_it_is_torch_s_batch_normalisation(momentum: float | None, affine: bool, offset: float) -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum, affine=affine))
    ours[0].load_state_dict(theirs.state_dict())
    joined(ours)
    assert isinstance(ours[0], JoinedBatchNorm)
    theirs.double()
    for training in (True, True, False):
        inputs = torch.randn(5, 3, 4, 2) + offset
        found, expected = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
        outputs, wanted = ours.train(training)(found), theirs.train(training)(expected)
        torch.testing.assert_close(outputs.double(), wanted, rtol=1e-3, atol=1e-3)
        outputs.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-2, atol=1e-3)
    for name, values in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[f"0.{name}"].to(values.dtype), values, rtol=1e-3, atol=1e-4)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-3, atol=1e-2)


def test_gradients_are_those_of_finite_differences() -> None:
    class Double(JoinedBatchNorm):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            from model.batch_norm import _Normalise

            return _Normalise.apply(input, self.weight, self.bias, self.eps)[0]

    module = Double(2).double()
    inputs = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: module(inputs), (inputs, *module.parameters()))


def test_another_kind_is_refused() -> None:
    class Gated(nn.BatchNorm2d):
        """Of a library, with a forward pass of its own."""

    with pytest.raises(ConfigurationError, match=r"network\.backbone: Gated \(1\) is not known to work on several"):
        joined(nn.Sequential(nn.ReLU(), Gated(3)))
