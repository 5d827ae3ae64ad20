"""Batch normalisation whose batch is spread over several processes.

On GPUs that is torch's SyncBatchNorm, which refuses CPU tensors; there the module below stands in, with the same
statistics, gradients, parameters and names.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.errors import ConfigurationError

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class JoinedBatchNorm(_BatchNorm):
    """nn.BatchNorm over the images of all processes; in evaluation mode it is nn.BatchNorm."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        outputs, mean, variance, count = _Normalise.apply(input.float(), self.weight, self.bias, self.eps)
        self._remember(mean, variance * (count / (count - 1)))
        return cast(Tensor, outputs.to(input.dtype))

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Normalise(torch.autograd.Function):
    """y, mean, biased variance (c) and count; Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1 and section 3.

    The mean comes first and the variance from what is left, so nothing cancels; a process without images adds zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes, shape = [0, *range(2, inputs.ndim)], (1, -1, *[1] * (inputs.ndim - 2))
        own = inputs.new_tensor([inputs.numel() / inputs.shape[1]])
        sums = _sum_(torch.cat([inputs.sum(axes), own]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        normalised = inputs - mean.view(shape)
        variance = _sum_(normalised.square().sum(axes)) / count
        inverse = torch.rsqrt(variance + eps)
        normalised.mul_(inverse.view(shape))
        ctx.save_for_backward(normalised, inverse, weight, count)
        ctx.mark_non_differentiable(mean, variance, count)
        outputs = normalised if weight is None else normalised * weight.view(shape)
        return outputs if bias is None else outputs + bias.view(shape), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normalised, inverse, weight, count = ctx.saved_tensors
        axes, shape = [0, *range(2, gradient.ndim)], (1, -1, *[1] * (gradient.ndim - 2))
        grad_bias, grad_weight = gradient.sum(axes), (gradient * normalised).sum(axes)
        means = _sum_(torch.stack([grad_bias, grad_weight])) / count
        scale = inverse if weight is None else inverse * weight
        left = gradient - means[0].view(shape) - normalised * means[1].view(shape)
        own = (None, None) if weight is None else (grad_weight, grad_bias)
        return left.mul_(scale.view(shape)), *own, None


def _sum_(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


def joined(network: nn.Module) -> nn.Module:
    """The network, its batch normalisations replaced by ones over all processes; weights and names stay.

    Raises ConfigurationError for a batch normalisation of another kind, which would see its own images only.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and not isinstance(module, JoinedBatchNorm):
            if type(module) not in PLAIN:
                raise ConfigurationError(
                    f"network.backbone: {type(module).__name__} ({name}) is not known to work on several devices"
                )
            parent, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(parent), own_name, _replaced(module))
    return network


def _replaced(module: _BatchNorm) -> _BatchNorm:
    if module.running_mean is not None and module.running_mean.is_cuda:
        return cast(_BatchNorm, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    tracks = module.running_mean is not None
    new = JoinedBatchNorm(module.num_features, module.eps, module.momentum, module.affine, tracks)
    new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    return new.train(module.training)
