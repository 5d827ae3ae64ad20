"""What others read: texts as UTF-8 can hold them, and outputs that cannot be written told of in a line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from model.errors import DataError

STANDARD_OUTPUT = "standard output"


class ReaderGoneError(Exception):
    """Who read the pipe has all that he wants. No BrokenPipeError: on that rich and typer end the process."""


class ToldOutput:
    """Standard output that says in a line why it cannot be written. Else it is the stream that it is made of."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Raises DataError, ReaderGoneError."""
        with told_of(STANDARD_OUTPUT):
            return self._stream.write(text)

    def flush(self) -> None:
        """Raises DataError, ReaderGoneError."""
        with told_of(STANDARD_OUTPUT):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def written(text: str) -> str:
    """As UTF-8 can hold it: bytes of a file's name that are none are told as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@contextmanager
def told_of(output: Path | str) -> Iterator[None]:
    """Raises DataError naming what cannot be written, ReaderGoneError where it is a pipe that nobody reads."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGoneError from None
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}") from None
    except UnicodeEncodeError as error:
        lacking = ascii(error.object[error.start])
        reason = f"its encoding, {error.encoding}, lacks {lacking}; PYTHONIOENCODING=utf-8 sets another"
        raise DataError(f"{output} cannot be written: {reason}") from None
