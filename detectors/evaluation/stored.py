"""Test images that stay in their store, files or Parquet on a disk or behind a URL, until a batch wants them.

Only their places and labels are held: some bytes an image, whatever its size.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from detectors.distributed.places import local_path, open_place, reachable
from detectors.distributed.sources import Block, ImageBytes, find_blocks, read_block
from model.errors import DataError, ImageError
from model.image_tensors import decode_image
from model.images import ImageFormat

BLOCK_SIZE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Of Parquet files: encoded images; class names, or indices into the bundle's labels."""

    image: str = "image"
    label: str = "label"


class Store:
    """All images below an address, in an order that does not change; each lies at a place in a block.

    A folder has one folder a class, Parquet files a column of labels.

    Raises DataError for an address that leads to none, a label that the bundle does not know; StoreError.
    """

    def __init__(self, address: str, class_names: tuple[str, ...], image_format: ImageFormat, columns: Columns):
        self.address = (local_path(address) or address).rstrip("/")
        self.image_format = image_format
        self._columns = columns
        self._index = {name: index for index, name in enumerate(class_names)}
        self._blocks = list(find_blocks([self.address], block_size=BLOCK_SIZE, image_column=columns.image))
        labels = [torch.tensor(list(self._labels_of(block)), dtype=torch.int64) for block in self._blocks]
        if not any(map(len, labels)):
            raise DataError(f"{self.address} holds no images: its Parquet files have no rows")
        self.labels = torch.cat(labels)
        self._starts = torch.tensor([0, *(len(part) for part in labels)]).cumsum(0)
        self._row_group = lru_cache(maxsize=1)(self._read_row_group)  # the next batch is likely to be in it too

    def digest(self) -> str:
        """SHA-256 over names and labels; of pixels nothing is known before they are read.

        Parquet files hold other images in another column; other labels show by themselves.
        """
        named = [(block.paths, block.row_group, *self._column_read(block)) for block in self._blocks]
        digest = hashlib.sha256(repr(named).encode())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def read(self, rows: Tensor) -> Tensor:
        """uint8 images (m, c, h, w) of rows (m,). Raises DataError naming an image that is no use, StoreError."""
        numbers = torch.searchsorted(self._starts, rows, right=True) - 1
        images = torch.empty((len(rows), *self.image_format.shape), dtype=torch.uint8)
        for number in sorted(set(numbers.tolist())):
            chosen = torch.nonzero(numbers == number).squeeze(1)
            offsets = (rows[chosen] - self._starts[number]).tolist()
            for row, image in zip(chosen.tolist(), self._encoded(number, offsets), strict=True):
                images[row] = self._decoded(image)
        return images

    def _encoded(self, number: int, offsets: list[int]) -> list[ImageBytes]:
        block = self._blocks[number]
        if block.row_group is not None:
            found = self._row_group(number)
            return [found[offset] for offset in offsets]
        return [image for chunk in read_block(block.select(offsets), self._columns.image) for image in chunk]

    def _read_row_group(self, number: int) -> list[ImageBytes]:
        return [image for chunk in read_block(self._blocks[number], self._columns.image) for image in chunk]

    def _decoded(self, image: ImageBytes) -> Tensor:
        if isinstance(image.content, str):
            raise DataError(image.content)
        try:
            return decode_image(image.content, self.image_format)
        except ImageError as error:
            raise DataError(f"{image.name}: {error}") from None

    def _column_read(self, block: Block) -> tuple[str, ...]:
        return () if block.row_group is None else (self._columns.image,)

    def _labels_of(self, block: Block) -> Iterator[int]:
        if block.row_group is not None:
            yield from self._column_of(block.paths[0], block.row_group)
            return
        for path in block.paths:
            folder, slash, _ = path.removeprefix(self.address + "/").partition("/")
            if not slash:
                raise DataError(f"{path} lies in no class's folder; {self.address} must have one folder a class")
            yield self._label(folder, path)

    def _column_of(self, path: str, row_group: int) -> Iterator[int]:
        import pyarrow.parquet

        files, inside = open_place(path)
        with reachable(path), files.open(inside) as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            if self._columns.label not in parquet.schema_arrow.names:
                names = ", ".join(parquet.schema_arrow.names)
                raise DataError(f"{path} has no column {self._columns.label!r}; --label-column names one of {names}")
            values = parquet.read_row_group(row_group, columns=[self._columns.label]).column(0).to_pylist()
        return (self._label(value, path) for value in values)

    def _label(self, value: Any, path: str) -> int:
        if isinstance(value, int) and 0 <= value < len(self._index):
            return value
        if isinstance(value, str) and value in self._index:
            return self._index[value]
        known = ", ".join(self._index)
        raise DataError(f"{path} has class {value!r}; the bundle has {known}, or their indices as integers")


Look = Callable[[Store, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class StoredImages:
    """uint8 images (n, c, h, w) that are there when a slice is taken. look: what they are for rows of the store."""

    store: Store
    rows: Tensor
    look: Look = Store.read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice) -> Tensor:
        return self.look(self.store, self.rows[chosen])

    def select(self, indices: Tensor) -> "StoredImages":
        """Those rows, still unread."""
        return replace(self, rows=self.rows[indices])


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSet:
    """What `model.image_set.ImageSet` is, of images that are not held."""

    images: StoredImages
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "StoredSet":
        """Those rows."""
        return replace(self, images=self.images.select(indices), labels=self.labels[indices])

    def digest(self) -> str:
        """Of the whole store: names a set so that another cannot be taken for it."""
        return self.images.store.digest()


def stored_set(address: str, class_names: tuple[str, ...], image_format: ImageFormat, columns: Columns) -> StoredSet:
    """All images of an address. Raises as `Store` does."""
    store = Store(address, class_names, image_format, columns)
    images = StoredImages(store, torch.arange(len(store.labels)))
    return StoredSet(images=images, labels=store.labels, class_names=class_names)


def inverted(store: Store, rows: Tensor) -> Tensor:
    """Black where they were white."""
    return 255 - store.read(rows)


def noise(store: Store, rows: Tensor) -> Tensor:
    """Uniform noise in their place, each drawn by its row; nothing is read."""
    shape = store.image_format.shape
    made = (torch.Generator().manual_seed(row) for row in rows.tolist())
    return torch.stack([torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for generator in made])
