"""Whether a file is still what it was when a run began, which may be days ago."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from detectors.distributed.places import is_local
from model.errors import DataError


@dataclass(frozen=True, slots=True)
class Version:
    """What differs once a file has been written again: its size in bytes, its ETag or else its time.

    None is what the store does not tell, or not everywhere: web servers list names alone.
    """

    size: int | None = None
    tag: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Version":
        """From what fsspec tells of a file; some stores quote an ETag in one place and not in another."""
        tag = next((str(facts[name]).strip('"') for name in ("ETag", "etag", "mtime") if facts.get(name)), None)
        return cls(facts.get("size"), tag)

    def differs(self, other: "Version") -> bool:
        pairs = ((self.size, other.size), (self.tag, other.tag))
        return any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs)


def version_of(files: AbstractFileSystem, inside: str) -> Version:
    """As it is now; nothing is known of a file that is missing, which whoever reads it tells."""
    try:
        return Version.of(files.info(inside))
    except OSError as error:
        if is_local(files) or isinstance(error, FileNotFoundError):
            return Version()
        raise


def check_version(path: str, files: AbstractFileSystem, inside: str, listed: Version) -> None:
    """Raises DataError where it is another than was listed; inside is what path is to its file system."""
    if listed.differs(version_of(files, inside)):
        raise changed(path)


def changed(path: str) -> DataError:
    """What to raise."""
    return DataError(f"{path} has changed since the run began: put it back, or begin again with another --output")
