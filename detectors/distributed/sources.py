"""What is to be judged: image files and Parquet files of images, found once and cut into blocks.

A block is the unit of work and of resuming: some image files, or one row group of a Parquet file.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from detectors.bulk import CHUNK
from detectors.distributed.places import is_local, open_place, reachable
from model.errors import DataError
from model.image_files import SUFFIXES

PARQUET = ".parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Image files, by path or URL; or the row group of the one Parquet file, whose images begin at first_row."""

    paths: tuple[str, ...]
    row_group: int | None = None
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """One image: its name in the results and its encoded bytes, or why there are none."""

    name: str
    content: bytes | str


def find_blocks(addresses: Sequence[str], *, block_size: int, image_column: str) -> Iterator[Block]:
    """Blocks in a stable order, no file in two. Raises DataError for an address that leads to none, StoreError."""
    seen: set[str] = set()
    for address in addresses:
        paths = [path for path in _find_files(address) if path not in seen]
        seen.update(paths)
        images = [path for path in paths if not path.endswith(PARQUET)]
        for start in range(0, len(images), block_size):
            yield Block(paths=tuple(images[start : start + block_size]))
        for path in paths:
            if path.endswith(PARQUET):
                yield from _row_groups(path, image_column)


def read_block(block: Block, image_column: str) -> Iterator[list[ImageBytes]]:
    """At most CHUNK images at a time. Raises StoreError, unless it is one file that is missing or may not be read."""
    if block.row_group is None:
        for start in range(0, len(block.paths), CHUNK):
            yield _read_files(block.paths[start : start + CHUNK])
    else:
        yield from _read_row_group(block, block.row_group, image_column)


def _find_files(address: str) -> list[str]:
    files, root = open_place(address)
    with reachable(address):
        if files.isfile(root):
            return [address]
        found = [path for path in files.find(root) if _is_wanted(path.removeprefix(root))]
    if not found and not files.exists(root):
        raise DataError(f"{address} does not exist")
    if not found:
        raise DataError(f"{address} holds no image files and no Parquet files")
    for path in found:
        if os.fsencode(path).decode("utf-8", "replace") != path:
            raise DataError(f"{path!r} has a name that is not UTF-8, which the plan of a run cannot hold; rename it")
    found.sort(key=lambda path: path.split("/"))  # as one process does
    return [address.rstrip("/") + path.removeprefix(root) for path in found]


def _is_wanted(relative: str) -> bool:
    path = PurePosixPath(relative)
    return path.suffix.lower() in {*SUFFIXES, PARQUET} and not any(part.startswith(".") for part in path.parts)


def _row_groups(path: str, image_column: str) -> Iterator[Block]:
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'lgm-guard[parquet]'")
    import pyarrow
    import pyarrow.parquet

    files, inside = open_place(path)
    with reachable(path), files.open(inside) as stream:
        try:
            facts = pyarrow.parquet.ParquetFile(stream)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path} is no Parquet file: {error}") from None
        names = facts.schema_arrow.names
        sizes = [facts.metadata.row_group(index).num_rows for index in range(facts.num_row_groups)]
    if image_column not in names:
        raise DataError(f"{path} has no column {image_column!r}; --image-column names one of {', '.join(names)}")
    first_row = 0
    for index, size in enumerate(sizes):
        if size > 0:  # an empty table is written as an empty group
            yield Block(paths=(path,), row_group=index, first_row=first_row)
        first_row += size


def _read_files(paths: Sequence[str]) -> list[ImageBytes]:
    files, _ = open_place(paths[0])
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: ImageBytes(path, _read_file(files, path)), paths))


def _read_file(files: AbstractFileSystem, path: str) -> bytes | str:
    """What is one file's fault is its row's error; all else, as a refusal of a remote store, is about every file."""
    local = is_local(files)
    faults = (FileNotFoundError, PermissionError, IsADirectoryError) if local else (FileNotFoundError,)
    with reachable(path):
        try:
            content: bytes = Path(path).read_bytes() if local else files.cat_file(open_place(path)[1])
        except faults as error:
            return f"{path} cannot be read: {error.strerror or 'not found'}"
    return content


def _read_row_group(block: Block, row_group: int, image_column: str) -> Iterator[list[ImageBytes]]:
    import pyarrow.parquet

    path = block.paths[0]
    files, inside = open_place(path)
    row = block.first_row
    with reachable(path), files.open(inside) as stream:
        parquet = pyarrow.parquet.ParquetFile(stream)
        for batch in parquet.iter_batches(batch_size=CHUNK, row_groups=[row_group], columns=[image_column]):
            names = [f"{path}#{row + offset}" for offset in range(len(batch))]
            values = batch.column(0).to_pylist()
            yield [ImageBytes(name, _bytes_of(name, value)) for name, value in zip(names, values, strict=True)]
            row += len(batch)


def _bytes_of(name: str, value: Any) -> bytes | str:
    """Of a column of bytes, or of structures with bytes, as the Hugging Face Hub's data sets have."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else f"{name} holds no bytes"
