"""Which image files there are on a disk."""

import os
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from model.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


def check_named(paths: Iterable[str]) -> None:
    """Raises DataError for an empty path, which would be the current folder: a shell's variable that was not set."""
    if "" in paths:
        raise DataError("an empty path names no file; write . for the current folder")


class Met:
    """Which files have been met, by whatever spelling of their paths. A link to a file is a file of its own."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}  # to resolve each once
        self._files: set[str] = set()

    def is_new(self, path: Path | str) -> bool:
        """Whether it is the first time."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        before = len(self._files)
        self._files.add(f"{self._folders[folder]}/{name}")
        return len(self._files) > before


def image_files(folder: Path, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """All image files below a folder but hidden ones, in a stable order; links are followed.

    suffixes: lower-case, of what is to be found.

    A link to nothing is among them, for whoever reads it to tell of. Raises DataError for a folder that cannot be
    read.
    """
    return sorted(
        path for path in _below(folder, suffixes) if path.is_file() or (path.is_symlink() and not path.exists())
    )


def _below(folder: Path, suffixes: Set[str]) -> Iterator[Path]:
    """What has such a name and is not hidden; every folder once, however many links lead there."""
    seen = {folder.resolve()}
    for where, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = {Path(where, name).resolve(): name for name in sorted(folders, reverse=True) if name[0] != "."}
        folders[:] = [name for real, name in inside.items() if real not in seen]
        seen.update(inside)
        yield from (Path(where, name) for name in names if name[0] != "." and Path(name).suffix.lower() in suffixes)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")
