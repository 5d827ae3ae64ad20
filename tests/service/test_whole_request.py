"""What is read without a parser is what the parser would have read; all else is left to the parser."""

from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.whole_request import read_whole

LINES = [
    b"host: a",
    b"Content-Length: 3",
    b"content-length:3",
    b"content-length: 0",
    b"content-length: +3",
    b"content-length: 3, 3",
    b"content-length : 3",
    b" content-length: 3",
    b"content-length: " + b"9" * 5000,
    b"transfer-encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"expect: 100-continue",
    b"upgrade: websocket",
    b"connection: close",
    b"Connection: Keep-Alive",
    b"x-request-id: mine",
    b"X-Request-Id:\tother",
    b"x-other: a\ncontent-length: 7",
    b"x-other: a\rtransfer-encoding: chunked",
    b"\tfolded: yes",
    b"no colon",
]
TARGETS = [b"/v1/predict", b"/a?b=c", b"*", b"/a b", b"http://a/", b"/\xff", b""]


class Reader:
    """What the parser of the service makes of bytes."""

    def __init__(self, data: bytes):
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.messages = self.begun = 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(data)
        self.method = self._parser.get_method()
        self.stays = self._parser.should_keep_alive()

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.messages += 1

    @property
    def given_id(self) -> bytes:
        return next((value for name, value in self.headers if name == b"x-request-id"), b"")


requests = st.builds(
    lambda start, target, version, lines, end, body: (
        b"\r\n".join([start + b" " + target + b" " + version, *lines]) + end + body
    ),
    st.sampled_from([b"POST", b"GET", b"post", b"\r\nPOST"]),
    st.sampled_from(TARGETS),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 "]),
    st.lists(st.sampled_from(LINES), max_size=5),
    st.sampled_from([b"\r\n\r\n", b"\r\n", b"\n\n"]),
    st.sampled_from([b"", b"abc", b"abcd", b"0\r\n\r\n", b"abcPOST / HTTP/1.1\r\n"]),
)


@given(requests)
@example(b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nx-request-id: mine\r\n\r\nabc")
def test_it_reads_what_the_parser_reads(data):
    whole = read_whole(data, max_head_bytes=32768)
    if whole is None:
        return
    parsed = Reader(data)
    assert (parsed.begun, parsed.messages, parsed.stays) == (1, 1, True)
    assert (whole.method, whole.target) == (parsed.method, parsed.target)
    assert whole.given_id.strip() == parsed.given_id.strip()


def test_it_reads_what_clients_send():
    data = b"POST /v1/predict?a HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    assert read_whole(data, max_head_bytes=32768) == (b"POST", b"/v1/predict?a", b"")


@pytest.mark.parametrize(
    "line", [line for line in LINES if b"ength" not in line and line[:4] not in (b"host", b"Conn")]
)
def test_what_frames_oddly_is_left_to_the_parser(line):
    if line.lower().startswith(b"x-request-id"):
        line += b"\r\n" + line  # twice: which one?
    data = b"POST / HTTP/1.1\r\n" + line + b"\r\ncontent-length: 3\r\n\r\nabc"
    assert (read_whole(data, max_head_bytes=32768) is None) == (line != b"no colon")


def test_any_part_and_any_surplus_is_left_to_the_parser():
    data = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    parts = [data[:end] for end in range(len(data))] + [data[start:] for start in range(len(b"POST"), len(data))]
    assert not [part for part in parts if read_whole(part, max_head_bytes=32768)]  # "OST" would be a method
    assert all(read_whole(data + more, max_head_bytes=32768) is None for more in (b"a", b"\r\n", data))


def test_a_head_beyond_its_limit_is_left_to_the_parser():
    sizes = range(40, 80)
    data = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    read = [read_whole(data, max_head_bytes=size) is not None for size in sizes]
    assert sorted(read) == read
    assert sum(before != after for before, after in pairwise(read)) == 1
