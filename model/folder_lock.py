"""One process at a time in a folder of results."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import ConfigurationError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others who ask out of a folder that is there; the lock ends with its process, however that ends.

    Raises ConfigurationError where another process holds it. On a file system without locks nobody is kept out.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    with suppress(OSError):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"{folder}: another process is at work in this folder; wait for it, or choose another --output"
            raise ConfigurationError(told) from None
