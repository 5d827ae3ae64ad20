"""What others read: texts as UTF-8 can hold them, and outputs that cannot be written told of in a line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import DataError

STANDARD_OUTPUT = "standard output"


def written(text: str) -> str:
    """As UTF-8 can hold it: bytes of a file's name that are none are told as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@contextmanager
def told_of(output: Path | str) -> Iterator[None]:
    """Raises DataError naming what cannot be written; who stops reading a pipe has all that he wants."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}") from None
    except UnicodeEncodeError as error:
        lacking = ascii(error.object[error.start])
        reason = f"its encoding, {error.encoding}, lacks {lacking}; PYTHONIOENCODING=utf-8 sets another"
        raise DataError(f"{output} cannot be written: {reason}") from None
