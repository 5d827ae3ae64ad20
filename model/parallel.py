"""Data-parallel training: each process embeds its rows of every batch, and all end with the same gradients.

The features are then gathered (`Devices.gather`), so that every process has the loss of the whole batch, whatever the
loss compares. Of a sharded mixture each process has the gradients of its own classes, whole.
"""

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.devices import Devices
from model.losses.base import RivalLoss
from model.network import Network

Embed = Callable[[Tensor], Tensor]  # images (n, c, h, w) -> features (n, d)


def parallel(network: Network, criterion: nn.Module, devices: Devices) -> Embed:
    """`network.embed`, whose backward pass leaves every process the averages of all gradients."""
    if devices.alone:
        return network.embed
    learned = [network.normalise, network.backbone, network.embedding]
    if isinstance(criterion, RivalLoss):  # the mixture is fitted afterwards, and every weight here is waited for
        learned.append(criterion)
    elif network.mixture.peers.alone:
        learned.append(network.mixture)
    return cast(Embed, DistributedDataParallel(_Embedding(network.embed, learned)))


class _Embedding(nn.Module):
    """What DistributedDataParallel needs: every weight whose gradient is averaged, and a forward pass."""

    def __init__(self, embed: Embed, learned: Iterable[nn.Module]):
        super().__init__()
        self.embed = embed
        self.learned = nn.ModuleList(learned)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images)
