"""Where files lie, named by their digest: a local folder, or whatever fsspec reaches by URL, as S3."""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import QuarantineUnavailableError, SettingsError
from service.quarantine.files import SUFFIXES, ImageFile

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

WRITERS = 16

# A store that does not answer must not hold a thread for the minutes that are the default.
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 3, "read_timeout": 10, "retries": {"max_attempts": 2}}}


class Store:
    """Files by digest. Each method raises QuarantineUnavailableError. The constructor raises SettingsError."""

    def __init__(self, address: str):
        self._name = re.sub("//[^/]*@", "//", address)  # without a password
        self._files, self._root = _open(address)
        self._write: Callable[[str, bytes], None] = (
            _write_durably if isinstance(self._files, LocalFileSystem) else self._files.pipe_file
        )

    def put(self, *files: ImageFile) -> None:
        """When this returns they are there for good, whole, whatever becomes of the machine.

        Several at once, since all the time goes in waiting for a disk or a network.
        """
        with self._reachable(), ThreadPoolExecutor(max(1, min(WRITERS, len(files)))) as writers:
            list(writers.map(self._put, files))

    def _put(self, file: ImageFile) -> None:
        self._write(self._path(file.digest, file.media_type), file.content)

    def read(self, digest: str, media_type: str) -> bytes:
        with self._reachable():
            content: bytes = self._files.cat_file(self._path(digest, media_type))
            return content

    def delete(self, digest: str, media_type: str) -> None:
        """Also where it is gone already."""
        with self._reachable():
            self._remove(self._path(digest, media_type))

    def delete_orphans(self, known: Callable[[list[str]], set[str]], *, before: datetime) -> int:
        """Delete files put before that moment whose digests are not known, and what was half written."""
        with self._reachable():
            names = [path for path, changed in self._found() if changed < before]
            digests = {path: path.rpartition("/")[2].partition(".")[0] for path in names}
            kept = known([digest for digest in set(digests.values()) if digest])
            orphans = [path for path, digest in digests.items() if digest not in kept]
            for path in orphans:
                self._remove(path)
            return len(orphans)

    def _found(self) -> Iterator[tuple[str, datetime]]:
        if not self._files.exists(self._root):
            return
        for path, facts in self._files.find(self._root, detail=True).items():
            yield path, _changed(facts)

    def _remove(self, path: str) -> None:
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            logger.debug("%s was gone already", path)

    def _path(self, digest: str, media_type: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}{SUFFIXES[media_type]}"

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Every kind of store has its own errors, and they are not all kinds of OSError."""
        try:
            yield
        except QuarantineUnavailableError:
            raise
        except Exception as error:
            logger.warning("the quarantine's store %s fails: %s: %s", self._name, type(error).__name__, error)
            raise QuarantineUnavailableError("the quarantine's store fails; the log says why") from None


def _open(address: str) -> tuple[AbstractFileSystem, str]:
    options: dict[str, Any] = S3_OPTIONS if address.startswith(("s3://", "s3a://")) else {}
    try:
        files, root = url_to_fs(address, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"quarantine_store: {error}") from None
    return files, root.rstrip("/")


def _changed(facts: dict[str, Any]) -> datetime:
    moment = facts.get("LastModified", facts.get("mtime", facts.get("created")))
    return moment if isinstance(moment, datetime) else datetime.fromtimestamp(float(moment or 0), UTC)


def _write_durably(path: str, content: bytes) -> None:
    """Under another name first: whoever finds the file finds all of it."""
    folder = Path(path).parent
    _make_durably(folder)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(folder)


def _make_durably(folder: Path) -> None:
    """With those above it, each for its owner alone."""
    if not folder.is_dir():
        _make_durably(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
