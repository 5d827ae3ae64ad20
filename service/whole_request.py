"""A request that came whole in one piece, read without a parser: as much of it as a refusal needs.

Under overload most requests are refused, and parsing them would take longer than all else that is done for them.
"""

import re
from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
# What frames a request or asks for more than one answer to it, and its id; blanks before the colon are not HTTP.
FRAMING = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|expect|upgrade|x-request-id)[ \t]*:[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
KEEP_ALIVE = b"keep-alive"
MAX_LENGTH_DIGITS = 18


class WholeRequest(NamedTuple):
    method: bytes
    target: bytes
    given_id: bytes


def read_whole(data: bytes, *, max_head_bytes: int) -> WholeRequest | None:
    """None for what is not surely one request, framed by one Content-Length, with nothing before or after it."""
    head_end = data.find(HEAD_END, 0, max_head_bytes)
    line = REQUEST_LINE.match(data)
    if head_end < 0 or line is None or data[line.end() : line.end() + 2] != b"\r\n" or _has_odd_lines(data, head_end):
        return None
    found = FRAMING.findall(data, line.end(), head_end)
    framing = {name.lower(): value for name, value in found}
    given_id = framing.pop(b"x-request-id", b"")
    length = framing.pop(b"content-length", b"")
    stays = framing.pop(b"connection", KEEP_ALIVE).lower() == KEEP_ALIVE
    is_sure = not framing and len(found) == len({name.lower() for name, _ in found}) and stays
    if not is_sure or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        return None
    whole = head_end + len(HEAD_END) + int(length) == len(data)
    return WholeRequest(line[1], line[2], given_id) if whole else None


def _has_odd_lines(data: bytes, head_end: int) -> bool:
    """Whether lines end or go on in a way that some take for another framing than others."""
    lines = data.count(b"\r\n", 0, head_end)
    ends_oddly = data.count(b"\n", 0, head_end) != lines or data.count(b"\r", 0, head_end) != lines
    return ends_oddly or data.find(b"\r\n ", 0, head_end) >= 0 or data.find(b"\r\n\t", 0, head_end) >= 0
