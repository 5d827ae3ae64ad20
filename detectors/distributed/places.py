"""Where inputs lie and results go: a local path, or whatever fsspec reaches by URL, as s3://bucket/folder."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from model.errors import DataError

# A store that does not answer must not hold a worker for the minutes that are the default: s3fs tries five times
# whatever botocore has tried again already.
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}}


class StoreError(DataError):
    """A store that cannot be reached, or refuses: no fault of any image, so nothing is said of one."""


def local_path(address: str) -> str | None:
    """The path of what lies on this machine, by path or file:// URL; None for any other URL."""
    if address.startswith(("file://", "local://")):
        return str(LocalFileSystem._strip_protocol(address))
    return address if address.startswith("/") or "://" not in address else None


def open_place(address: str) -> tuple[AbstractFileSystem, str]:
    """Its file system, and the path inside. Raises DataError for a scheme that is unknown or not installed."""
    if (path := local_path(address)) is not None:  # taken as it is: fsspec reads more into :: and ~
        return LocalFileSystem(), str(Path(path).absolute()).rstrip("/")
    options: dict[str, Any] = S3_OPTIONS if address.startswith(("s3://", "s3a://")) else {}
    try:
        files, path = url_to_fs(address, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise DataError(f"{address}: {error}; for S3: pip install 'lgm-guard[s3]'") from None
    return files, path.rstrip("/")


def is_local(files: AbstractFileSystem) -> bool:
    """Whether paths are this machine's, so that files need no client."""
    return isinstance(files, LocalFileSystem)


@contextmanager
def reachable(address: str) -> Iterator[None]:
    """Turns what any kind of store raises, which is not always an OSError, into StoreError naming the address."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise StoreError(f"{address} cannot be reached or read: {type(error).__name__}: {error}") from None


def write_whole(files: AbstractFileSystem, path: str, content: bytes) -> None:
    """Whoever finds the file finds all of it. An object store's upload is such; a folder needs a second name."""
    if not is_local(files):
        files.pipe_file(path, content)
        return
    descriptor, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
