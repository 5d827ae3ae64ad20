"""Compressed bodies, undone only as far as the limit on bodies allows."""

import zlib

from service.errors import BodyTooLargeError, FieldFault, MalformedBodyError, UnsupportedMediaError

# zlib's window sizes; 16 more means gzip's head and tail.
WINDOWS = {"gzip": zlib.MAX_WBITS + 16, "deflate": zlib.MAX_WBITS}


def check_encoding(given: str) -> str:
    """The content-encoding in lower case, empty where it changes nothing.

    Raises UnsupportedMediaError for one that is not taken.
    """
    encoding = given.strip().lower()
    if encoding not in ("", "identity", *WINDOWS):
        raise UnsupportedMediaError(
            FieldFault("content-encoding", f"{encoding[:64]} is not taken; send {', '.join(WINDOWS)} or identity")
        )
    return encoding if encoding in WINDOWS else ""


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Raises BodyTooLargeError past the limit, MalformedBodyError for what is damaged or cut short."""
    if encoding not in WINDOWS:
        return body
    decompressor = zlib.decompressobj(WINDOWS[encoding])
    try:
        content = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBodyError(FieldFault("body", f"not {encoding}: {error}")) from None
    if len(content) > max_bytes:
        raise BodyTooLargeError(FieldFault("body", f"more than {max_bytes} bytes when decompressed, the limit"))
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBodyError(FieldFault("body", f"not one whole {encoding} stream"))
    return content
