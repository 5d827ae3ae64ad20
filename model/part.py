"""The rows of a batch that one of several processes works on."""

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Rows [first, last) of a batch of total rows.

    Random numbers are drawn for the whole batch and cut to the part, so that an image meets the same chance
    whatever the number of processes.
    """

    first: int
    last: int
    total: int

    @classmethod
    def whole(cls, total: int) -> "Part":
        """All rows."""
        return cls(0, total, total)

    @classmethod
    def of(cls, total: int, *, rank: int, size: int) -> "Part":
        """The rows of one process of size: in order of rank, sizes that differ by one at most, perhaps none."""
        each, more = divmod(total, size)
        first = rank * each + min(rank, more)
        return cls(first, first + each + (rank < more), total)

    @property
    def rows(self) -> slice:
        """For indexing what has a row an image of the whole batch."""
        return slice(self.first, self.last)

    def rand(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1), (*shape, n): a column an image of the part."""
        return torch.rand(*shape, self.total, generator=generator)[..., self.rows]

    def randint(self, high: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Integers in [0, high), (*shape, n)."""
        return torch.randint(0, high, (*shape, self.total), generator=generator)[..., self.rows]
