"""The file of API keys: read again when it changes, only ever appended to.

A change that is broken changes nothing: the keys read before stay, and the log says why. Appending is one write
to the file itself, so that two commands do not lose each other's keys and a mounted file stays the same file.
"""

import errno
import fcntl
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from service.errors import KeyFileError
from service.file_watch import FileWatch
from service.keys import Key, KeyRing, parse_keys

logger = logging.getLogger(__name__)
MAX_FILE_BYTES = 1024 * 1024


class KeyFile:
    """The keys of a file, as they stand there since at most a second."""

    def __init__(self, path: Path):
        """Raises KeyFileError."""
        self._path = path
        self._watch = FileWatch(path)
        self._ring = read_keys(path)
        self._warn_if_closed()

    @property
    def ring(self) -> KeyRing:
        if self._watch.changed():
            self._read_again()
        return self._ring

    def _read_again(self) -> None:
        try:
            self._ring = read_keys(self._path)
        except KeyFileError as error:
            logger.error("%s; the keys read before stay valid", error)
        else:
            logger.info("read %d API keys again", len(self._ring.keys))
            self._warn_if_closed()

    def _warn_if_closed(self) -> None:
        """Which is no error: a key may be added while the service runs."""
        if not self._ring.lets_somebody_in():
            logger.warning("api_keys: %s has no valid key, so nobody gets in; lgm keys new adds one", self._path)


def read_keys(path: Path) -> KeyRing:
    """Raises KeyFileError, also for a file that others than its owner and group may read or write."""
    try:
        with path.open("rb") as stream:
            _check_kind(path, os.fstat(stream.fileno()))
            return parse_keys(stream.read(MAX_FILE_BYTES).decode("utf-8"))
    except OSError as error:
        raise KeyFileError(f"api_keys: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"api_keys: {path} is not UTF-8") from None
    except KeyFileError as error:
        raise KeyFileError(f"api_keys: {path}: {error}") from None


def append_key(path: Path, key: Key) -> None:
    """Add a key; the file is made, for its owner alone, where there is none. Raises KeyFileError."""
    entry = {
        "id": f'"{key.id}"',
        "role": f'"{key.role.label}"',
        "sha256": f'"{key.digest.hex()}"',
        "created": _timestamp(key.created),
        **({} if key.expires is None else {"expires": _timestamp(key.expires)}),
    }
    _append(path, "keys", entry, os.O_CREAT)


def append_revocation(path: Path, key_id: str) -> None:
    _append(path, "revoked", {"id": f'"{key_id}"', "at": _timestamp(datetime.now(UTC))}, 0)


def _append(path: Path, table: str, entry: dict[str, str], flags: int) -> None:
    block = f"\n[[{table}]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items())
    try:
        with open(os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o600), "r+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # until it is closed: nobody appends between the check and the write
            before, added = stream.read(), block.encode()
            _check_appended(path, before + added, table)
            if stream.write(added) < len(added):  # the disk is full; half a table would break the file
                stream.truncate(len(before))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def _check_appended(path: Path, content: bytes, table: str) -> None:
    """Raises KeyFileError where the file would be none any more, though each part of it may be sound."""
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path} is full: {MAX_FILE_BYTES} bytes are the limit; take out keys that have expired")
    try:
        parse_keys(content.decode("utf-8"))
    except (KeyFileError, UnicodeDecodeError) as error:
        advice = f"write what stands in `{table} = [...]` as [[{table}]] tables, and nothing for `{table} = []`"
        raise KeyFileError(f"{path} stays as it is: no [[{table}]] table can be added: {error}; {advice}") from None


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError("not a file")
    if found.st_mode & stat.S_IRWXO:
        raise KeyFileError(f"open to every user (mode {stat.S_IMODE(found.st_mode):04o}); chmod o-rwx {path}")
    if found.st_size > MAX_FILE_BYTES:
        raise KeyFileError(f"more than {MAX_FILE_BYTES} bytes, the limit")
