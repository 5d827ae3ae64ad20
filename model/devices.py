"""One network trained by several processes: who they are, and what they tell one another.

torch.distributed does the talking, NCCL between GPUs and gloo between CPUs; torchrun, or `launch` beside this, starts
the processes. Each embeds its rows of every batch. The features are then gathered, so that every process has the loss
of the whole batch, whatever the loss compares, and DistributedDataParallel averages the gradients.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from model.errors import ConfigurationError
from model.losses.base import RivalLoss
from model.network import Network
from model.part import Part

WAIT = timedelta(minutes=30)  # the longest that one process may load data or measure while the others wait

Embed = Callable[[Tensor], Tensor]  # images (n, c, h, w) -> features (n, d)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """This process among those that train together; by default there is no other."""

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether this process trains the network by itself."""
        return self.size == 1

    def part(self, total: int) -> Part:
        """This process's rows of a batch."""
        return Part.of(total, rank=self.rank, size=self.size)

    def parallel(self, network: Network, criterion: nn.Module) -> Embed:
        """`network.embed`, whose backward pass leaves every process the same gradients: the averages of all."""
        if self.alone:
            return network.embed
        if isinstance(criterion, RivalLoss):
            network.mixture.requires_grad_(False)  # it is fitted afterwards, and every weight is waited for
        return cast(Embed, DistributedDataParallel(_Embedding(network, criterion)))

    def gather(self, values: Tensor, part: Part) -> Tensor:
        """The whole batch's values from the rows that each process has; differentiable in its own."""
        return values if self.alone else cast(Tensor, _Gather.apply(values, part, self.size))

    def sum(self, count: int, device: torch.device) -> int:
        """The sum of every process's count."""
        if self.alone:
            return count
        counts = torch.tensor([count], device=device)
        dist.all_reduce(counts)
        return int(counts)

    def agree(self, values: Mapping[str, object]) -> None:
        """Raises ConfigurationError on every process, with field and rank, where one's value is not rank 0's."""
        if self.alone:
            return
        own = {name: json.dumps(value) for name, value in values.items()}
        told: list[dict[str, str]] = [{}] * self.size
        dist.all_gather_object(told, own)
        for rank, theirs in enumerate(told):
            for name, value in told[0].items():
                if theirs.get(name) != value:
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
        yield Devices(rank=rank, size=size)
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


class _Embedding(nn.Module):
    """What DistributedDataParallel needs: every weight that learns, and a forward pass."""

    def __init__(self, network: Network, criterion: nn.Module):
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images)


class _Gather(torch.autograd.Function):
    """Rows of all processes. Each has the whole loss, of which only its own rows' gradient is its business; `size`
    times that makes up for the average that follows.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, part: Part, size: int) -> Tensor:
        ctx.part, ctx.size = part, size
        whole = values.new_zeros(part.total, *values.shape[1:])
        whole[part.rows] = values
        dist.all_reduce(whole)
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[ctx.part.rows] * ctx.size, None, None
