"""Which image files there are on a disk."""

import os
from collections.abc import Iterator
from pathlib import Path

from model.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder but hidden ones, in a stable order; links are followed.

    A link to nothing is among them, for whoever reads it to tell of. Raises DataError for a folder that cannot be
    read.
    """
    return sorted(path for path in _below(folder) if path.is_file() or (path.is_symlink() and not path.exists()))


def _below(folder: Path) -> Iterator[Path]:
    """What has an image's name and is not hidden; every folder once, however many links lead there."""
    seen = {folder.resolve()}
    for where, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = {Path(where, name).resolve(): name for name in sorted(folders, reverse=True) if name[0] != "."}
        folders[:] = [name for real, name in inside.items() if real not in seen]
        seen.update(inside)
        yield from (Path(where, name) for name in names if name[0] != "." and Path(name).suffix.lower() in SUFFIXES)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")
