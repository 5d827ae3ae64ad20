"""What is to be judged: image files and Parquet files of images, found once and cut into blocks.

A block is the unit of work and of resuming: some image files, or one row group of a Parquet file.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from detectors.bulk import CHUNK
from detectors.distributed.places import is_local, local_path, open_place, reachable
from detectors.distributed.versions import Version, changed, check_version, version_of
from model.errors import DataError
from model.image_files import SUFFIXES, Met, image_files

PARQUET = ".parquet"
WANTED = SUFFIXES | {PARQUET}
Remote = tuple[AbstractFileSystem, str]
LOCAL_FAULTS = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Image files, by path or URL; or the row group of the one Parquet file, whose num_rows begin at first_row.

    versions: of each file, as it was found.
    """

    paths: tuple[str, ...]
    versions: tuple[Version, ...]
    row_group: int | None = None
    first_row: int = 0
    num_rows: int = 0

    def select(self, offsets: Sequence[int]) -> "Block":
        """Those of its image files."""
        paths, versions = zip(*((self.paths[offset], self.versions[offset]) for offset in offsets), strict=True)
        return Block(paths=paths, versions=versions)


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """One image: its name in the results and its encoded bytes, or why there are none."""

    name: str
    content: bytes | str


def find_blocks(addresses: Sequence[str], *, block_size: int, image_column: str) -> Iterator[Block]:
    """Blocks in a stable order, no file in two. Raises DataError for an address that leads to none, StoreError."""
    met, met_remote = Met(), set[Remote]()
    for address in addresses:
        found = _find_new(address, met, met_remote)
        images = [path for path in found if _suffix(path) != PARQUET]
        for start in range(0, len(images), block_size):
            paths = tuple(images[start : start + block_size])
            yield Block(paths=paths, versions=tuple(found[path] for path in paths))
        for path, version in found.items():
            if _suffix(path) == PARQUET:
                yield from _row_groups(path, version, image_column)


def read_block(block: Block, image_column: str) -> Iterator[list[ImageBytes]]:
    """At most CHUNK images at a time. Raises StoreError, unless it is one file that is missing or may not be read.

    Raises DataError for a file that has changed since it was found; after all is read, so that nothing slips through.
    """
    if block.row_group is None:
        for start in range(0, len(block.paths), CHUNK):
            yield _read_files(block.paths[start : start + CHUNK], block.versions[start : start + CHUNK])
    else:
        yield from _read_row_group(block, block.row_group, image_column)


def _find_new(address: str, met: Met, met_remote: set[Remote]) -> dict[str, Version]:
    """Files not met before, by path or URL; what has been met lies on this machine or in a remote file system."""
    files, root = open_place(address)
    found = _find_files(address, files, root)
    if is_local(files):
        new = [inside for inside in found if met.is_new(inside)]
    else:
        new = [inside for inside in found if (files, inside) not in met_remote]
        met_remote.update((files, inside) for inside in new)
    prefix = (local_path(address) or address).rstrip("/")
    return {prefix + inside.removeprefix(root): found[inside] for inside in new}


def _find_files(address: str, files: AbstractFileSystem, root: str) -> dict[str, Version]:
    """By their paths in the file system."""
    with reachable(address):
        if files.isfile(root):
            found = {root: version_of(files, root)}
        elif not is_local(files):
            found = _find_remote(files, root)
        else:
            paths = image_files(Path(f"{root}/"), WANTED) if files.isdir(root) else []
            found = {str(path): version_of(files, str(path)) for path in paths}
        if not found and not files.exists(root):
            raise DataError(f"{address} does not exist")
    if not found:
        raise DataError(f"{address} holds no image files and no Parquet files")
    for path in found:
        if os.fsencode(path).decode("utf-8", "replace") != path:
            raise DataError(f"{path!r} has a name that is not UTF-8, which the plan of a run cannot hold; rename it")
    return found


def _find_remote(files: AbstractFileSystem, root: str) -> dict[str, Version]:
    """What `image_files` finds on a disk, in the same order."""
    found = {
        path: Version.of(facts)
        for path, facts in files.find(root, detail=True).items()
        if _suffix(path) in WANTED and not any(part.startswith(".") for part in path.removeprefix(root).split("/"))
    }
    return {path: found[path] for path in sorted(found, key=lambda path: path.split("/"))}


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _row_groups(path: str, version: Version, image_column: str) -> Iterator[Block]:
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
            yield Block(paths=(path,), versions=(version,), row_group=index, first_row=first_row, num_rows=size)
        first_row += size


def _read_files(paths: Sequence[str], versions: Sequence[Version]) -> list[ImageBytes]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path, version: ImageBytes(path, _read_file(path, version)), paths, versions))


def _read_file(path: str, version: Version) -> bytes | str:
    """What is one file's fault is its row's error; all else, as a refusal of a remote store, is about every file."""
    files, inside = open_place(path)
    with reachable(path):
        try:
            content: bytes = files.cat_file(inside)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or (is_local(files) and error.errno in LOCAL_FAULTS):
                return f"{path} cannot be read: {error.strerror or 'not found'}"
            raise
        check_version(path, files, inside, version)
    return content


def _read_row_group(block: Block, row_group: int, image_column: str) -> Iterator[list[ImageBytes]]:
    import pyarrow.parquet

    path = block.paths[0]
    files, inside = open_place(path)
    row = block.first_row
    with reachable(path), files.open(inside) as stream:
        check_version(path, files, inside, block.versions[0])
        parquet = pyarrow.parquet.ParquetFile(stream)
        if row_group >= parquet.num_row_groups or parquet.metadata.row_group(row_group).num_rows != block.num_rows:
            raise changed(path)  # in a store that tells neither size nor time
        for batch in parquet.iter_batches(batch_size=CHUNK, row_groups=[row_group], columns=[image_column]):
            names = [f"{path}#{row + offset}" for offset in range(len(batch))]
            values = batch.column(0).to_pylist()
            yield [ImageBytes(name, _bytes_of(name, value)) for name, value in zip(names, values, strict=True)]
            row += len(batch)
        check_version(path, files, inside, block.versions[0])


def _bytes_of(name: str, value: Any) -> bytes | str:
    """Of a column of bytes, or of structures with bytes, as the Hugging Face Hub's data sets have."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else f"{name} holds no bytes"
