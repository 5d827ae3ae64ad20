"""Files and tensors -> requests of limited size, each of one form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from service.client.images import Array, Entry, File, Tensor, Unsendable


@dataclass(frozen=True, slots=True)
class FilePart:
    """Image files for one request."""

    files: list[File]


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Images of one type and shape for one request."""

    tensors: list[Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w), of each."""
        return self.tensors[0].content.shape

    def stacked(self) -> Array:
        """(n, c, h, w), little-endian whatever the machine."""
        images = np.stack([tensor.content for tensor in self.tensors])
        return images.astype(images.dtype.newbyteorder("<"), copy=False)


Part = FilePart | TensorPart


@dataclass(slots=True)
class _Pending:
    """What waits to be sent together."""

    entries: list[File | Tensor] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, entry: File | Tensor) -> None:
        self.entries.append(entry)
        self.num_bytes += _num_bytes(entry)


def split(given: Iterable[Entry], *, max_instances: int, max_bytes: int) -> Iterator[Part | Unsendable]:
    """As soon as each is full. A single image may have more than max_bytes: the service says what it takes."""
    waiting: dict[object, _Pending] = {}
    for entry in given:
        if isinstance(entry, Unsendable):
            yield entry
            continue
        pending = waiting.setdefault(_form(entry), _Pending())
        if pending.entries and pending.num_bytes + _num_bytes(entry) > max_bytes:
            yield _part(pending)
            pending = waiting[_form(entry)] = _Pending()
        pending.add(entry)
        if len(pending.entries) == max_instances:
            yield _part(waiting.pop(_form(entry)))
    yield from map(_part, waiting.values())


def _form(entry: File | Tensor) -> object:
    return File if isinstance(entry, File) else (entry.content.dtype, entry.content.shape)


def _num_bytes(entry: File | Tensor) -> int:
    return len(entry.content) if isinstance(entry, File) else entry.content.nbytes


def _part(pending: _Pending) -> Part:
    files = [entry for entry in pending.entries if isinstance(entry, File)]
    return FilePart(files) if files else TensorPart([of for of in pending.entries if isinstance(of, Tensor)])
