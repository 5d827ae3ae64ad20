"""Memory that a worker process shares with the process that feeds it: images in, judgements out.

It has no name, so nothing is left behind however the processes end. Legend: n images of a batch, c channels, h w
pixels, k classes, e detectors.
"""

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.judgements import Judgements

ALIGNMENT = 64  # bytes: what the widest vector instructions like best


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which arrays lie in the slab; both processes derive the same places from it."""

    max_batch_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    detectors: tuple[str, ...]

    def fields(self) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        each = (self.max_batch_size,)
        return {
            "images": (np.float32, each + self.image_shape),
            "class_index": (np.int64, each),
            "probabilities": (np.float32, (*each, self.num_classes)),
            "log_likelihood": (np.float32, each),
            "p_value": (np.float32, each),
            "flagged": (np.bool_, each),
            "evidence_scores": (np.float32, (*each, len(self.detectors))),
            "evidence_p_values": (np.float32, (*each, len(self.detectors))),
        }

    @property
    def num_bytes(self) -> int:
        return sum(_padded_bytes(*field) for field in self.fields().values())


class Slab:
    """The arrays of a layout over one file of anonymous memory."""

    def __init__(self, file_descriptor: int, layout: Layout):
        self._detectors = layout.detectors
        memory = mmap.mmap(file_descriptor, layout.num_bytes)
        arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for name, (kind, shape) in layout.fields().items():
            arrays[name] = np.frombuffer(memory, kind, math.prod(shape), offset).reshape(shape)
            offset += _padded_bytes(kind, shape)
        self.images = arrays.pop("images")
        self._outputs = arrays

    def write(self, outputs: Iterable[NDArray[Any]]) -> None:
        """In the order of the layout's fields."""
        for place, array in zip(self._outputs.values(), outputs, strict=True):
            place[: len(array)] = array

    def read(self, count: int) -> Judgements:
        """Copies, since the next batch will lie here."""
        outputs = {name: array[:count].copy() for name, array in self._outputs.items()}
        return Judgements(detectors=self._detectors, **outputs)


def anonymous_file(num_bytes: int) -> int:
    """The descriptor of a file of that size that no folder knows."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("lgm-slab")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def _padded_bytes(kind: type[np.generic], shape: tuple[int, ...]) -> int:
    return math.ceil(max(1, math.prod(shape)) * np.dtype(kind).itemsize / ALIGNMENT) * ALIGNMENT
