"""What an image file may hold that costs far more than its pixels: left out or refused before it is decoded."""

import re
import struct

from model.errors import ImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = struct.Struct(">I4s")  # length and name, before the content; four bytes of checksum follow it
ANCILLARY = 0x20  # in a name's first letter: lower case
PNG_NEEDED = frozenset({b"tRNS", b"eXIf"})  # of those

JPEG_START = b"\xff\xd8"
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # but those without content, and stuffing in a scan
SCAN, END = b"\xda", b"\xd9"
MAX_SCANS = 100  # a progressive file has about ten; each costs as much as all pixels, in as little as 11 bytes


def guarded(data: bytes) -> bytes:
    """The same image. Raises ImageError for a JPEG of more than MAX_SCANS scans."""
    if data.startswith(PNG_SIGNATURE):
        return _without_notes(data)
    if data.startswith(JPEG_START):
        _check_scans(data)
    return data


def _without_notes(data: bytes) -> bytes:
    """A PNG without what its pixels do not need: of texts and profiles Pillow unpacks each kilobyte to 1 MiB."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + PNG_CHUNK.size <= len(data):
        length, name = PNG_CHUNK.unpack_from(data, start)
        end = start + PNG_CHUNK.size + length + 4
        if not name[0] & ANCILLARY or name in PNG_NEEDED:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _check_scans(data: bytes) -> None:
    num_scans, marker = 0, JPEG_MARKER.search(data)
    while marker is not None and marker[1] != END:
        num_scans += marker[1] == SCAN
        if num_scans > MAX_SCANS:
            raise ImageError(f"JPEG has more than {MAX_SCANS} scans, the limit")
        length = int.from_bytes(data[marker.end() : marker.end() + 2])
        marker = JPEG_MARKER.search(data, marker.end() + length)
