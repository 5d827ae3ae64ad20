"""Several processes that work on one network: who they are, and what they tell one another.

torch.distributed does the talking, NCCL between GPUs and gloo between CPUs; torchrun, or `launch` beside this, starts
the processes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from model.errors import ConfigurationError
from model.part import Part

WAIT = timedelta(minutes=30)  # the longest that one process may load data or measure while the others wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """This process among those that work together; by default there is no other.

    group: of torch.distributed, None for its default one. What a reduction writes is the same for all of them.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> "Devices":
        """This process among those of a group; torch.distributed must be initialised."""
        return cls(rank=dist.get_rank(group), size=dist.get_world_size(group), group=group)

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def part(self, total: int) -> Part:
        """This process's rows of a batch."""
        return Part.of(total, rank=self.rank, size=self.size)

    def gather(self, values: Tensor, part: Part) -> Tensor:
        """All rows from those that each process has; differentiable in its own."""
        return values if self.alone else cast(Tensor, _Gather.apply(values, part, self))

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if not self.alone:
            dist.all_reduce(values, dist.ReduceOp.SUM, self.group)
        return values

    def maximum_(self, values: Tensor) -> Tensor:
        """The largest of all processes, in place."""
        if not self.alone:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def log_softmax(self, values: Tensor) -> Tensor:
        """log softmax over the numbers (s) of all processes; differentiable in this one's."""
        return torch.log_softmax(values, 0) if self.alone else cast(Tensor, _LogSoftmax.apply(values, self))

    def agree(self, values: Mapping[str, object]) -> None:
        """Raises ConfigurationError on every process, with field and rank, where one's value is not rank 0's."""
        if self.alone:
            return
        own = {name: json.dumps(value) for name, value in values.items()}
        told: list[dict[str, str]] = [{}] * self.size
        dist.all_gather_object(told, own, self.group)
        for rank, theirs in enumerate(told):
            for name in told[0] | theirs:
                if theirs.get(name) != (value := told[0].get(name)):
                    raise ConfigurationError(
                        f"the processes disagree: {name} is {value} on rank 0, but {theirs.get(name)} on rank {rank}"
                    )


ALONE = Devices()


@contextmanager
def join(device: str) -> Iterator[Devices]:
    """The processes that torchrun or `launch` started, for as long as the block lasts; alone if nobody did.

    device: "cpu" or "cuda"; of several processes each takes the GPU of its number on its machine.
    Raises ConfigurationError for a numbered GPU where there are several processes, and for more of them than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device.partition(":")[2]:
        raise ConfigurationError(f"training.device is {device!r}, but each of {size} processes has its own: say cuda")
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    if device == "cuda":
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://", timeout=WAIT))
    # The launcher keeps its store through a restart, and with it the addresses of processes that are no more.
    attempt = f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}"
    fresh = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=WAIT, store=fresh, rank=rank, world_size=size)
    try:
        yield Devices.of()
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    """NCCL sends objects by way of the current GPU."""
    if number >= torch.cuda.device_count():
        raise ConfigurationError(f"a process of number {number}, but {torch.cuda.device_count()} CUDA devices found")
    torch.cuda.set_device(number)


def local_device(name: str, devices: Devices) -> str:
    """cuda:N for this process where the name is cuda and there are several; else the name."""
    return name if devices.alone or name != "cuda" else f"cuda:{os.environ['LOCAL_RANK']}"


class _Gather(torch.autograd.Function):
    """Rows of all processes. Each has the whole loss, of which only its own rows' gradient is its business; `size`
    times that makes up for the average that follows, see `parallel`.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, part: Part, devices: Devices) -> Tensor:
        ctx.part, ctx.size = part, devices.size
        whole = values.new_zeros(part.total, *values.shape[1:])
        whole[part.rows] = values
        return devices.sum_(whole)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[ctx.part.rows] * ctx.size, None, None


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, devices: Devices) -> Tensor:
        top = devices.maximum_(values.max())
        total = devices.sum_((values - top).exp().sum())
        logs = values - top - total.log()
        ctx.save_for_backward(logs)
        ctx.devices = devices
        return logs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (logs,) = ctx.saved_tensors
        return gradient - logs.exp() * ctx.devices.sum_(gradient.sum()), None
