"""Slow, half-open, oversized and smuggling peers against the real protocol on real sockets."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from service.connections import Connection
from service.headers import NO_CONTENT_POLICY, SECURITY_HEADERS
from service.house import House
from service.turns import Turns
from tests.service.test_shedding import parsed

NEVER = 1000.0
GET = b"GET /path HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\n"
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\n"
HTTP_2 = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


async def echo(scope, receive, send) -> None:
    """Answers with what it took the request to be."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    size = int(scope["path"].strip("/")) if scope["path"].strip("/").isdecimal() else 0
    told = {name.decode(): value.decode() for name, value in scope["headers"] if name == b"x-told"}
    answer = json.dumps({"path": scope["path"], "body": len(body), **told}).encode() + b" " * size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


class Site:
    def __init__(self, port: int, house: House, state: ServerState, refused: Counter[str]):
        self.port, self.house, self.state, self.refused = port, house, state, refused
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for connection in list(self.state.connections):
            connection.transport.abort()
        for writer in self._writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await until(lambda: not self.state.connections)

    async def ask(self, request: bytes) -> bytes:
        """All that is answered until the server closes."""
        reader, writer = await self.connect()
        writer.write(request)
        return await read_to_end(reader)


@asynccontextmanager
async def running(*, keep_alive_seconds: float = 5, **limits: Any) -> AsyncIterator[Site]:
    refused: Counter[str] = Counter()
    house = House(
        **{
            "max_connections": 100,
            "max_head_bytes": 2048,
            "head_timeout_seconds": NEVER,
            "body_timeout_seconds": NEVER,
            "refusal": lambda method, target, given_id: None,
            "has_room": lambda: True,
            "refuses_lately": lambda: False,
            "turns": Turns(),
            "on_refusal": lambda code: refused.update([code]),
            **limits,
        }
    )
    config = uvicorn.Config(echo, log_config=None, lifespan="off", timeout_keep_alive=keep_alive_seconds)  # type: ignore[arg-type]
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, config, state, {}, None, house=house), "127.0.0.1", 0)
    site = Site(server.sockets[0].getsockname()[1], house, state, refused)
    try:
        yield site
    finally:
        server.close()
        await site.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Up to the end, whichever way the server ends it."""
    answer = b""
    try:
        async with asyncio.timeout(30):
            while chunk := await reader.read(65536):
                answer += chunk
    except ConnectionError:
        pass
    return answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def run(scenario: Callable[[Site], Awaitable[None]], **limits: Any) -> None:
    async def inside() -> None:
        async with running(**limits) as site:
            await scenario(site)

    asyncio.run(inside())


def test_blanks_around_a_value_are_none_of_it():
    async def scenario(site: Site) -> None:
        answer = await site.ask(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-told: \t two words \t \r\n\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["x-told"] == "two words"

    run(scenario)


def test_good_requests_share_a_connection():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        for body in (b"", b"x" * 10_000):
            writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(await reader.readuntil(b"}"))["body"] == len(body)
        assert not site.refused

    run(scenario)


def chunked(body: bytes) -> bytes:
    return b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


SMUGGLED = {
    "length and encoding": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "encoding and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
    "a list of lengths": POST + b"content-length: 4, 5\r\n\r\nabcde",
    "a signed length": POST + b"content-length: +4\r\n\r\nabcd",
    "a negative length": POST + b"content-length: -4\r\n\r\nabcd",
    "a length beyond 64 bits": POST + b"content-length: 99999999999999999999999\r\n\r\nabcd",
    "a hexadecimal length": POST + b"content-length: 0x4\r\n\r\nabcd",
    "chunked that is not last": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + 2 * b"transfer-encoding: chunked\r\n" + b"content-length: 1\r\n\r\n0\r\n\r\n",
    "an encoding with another letter": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"content-length : 4\r\n\r\nabcd",
    "a folded header": POST + b"content-length: 4\r\nx: a\r\n b\r\n\r\nabcd",
    "a lone carriage return": POST + b"x: a\rcontent-length: 4\r\n\r\nabcd",
    "a zero byte in a header": POST + b"x: a\0b\r\n\r\n",
    "an endless chunk size": POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a chunk size that is none": POST + b"transfer-encoding: chunked\r\n\r\n4 x\r\nabcd\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nx: a\r\n\r\n",
    "two hosts": POST + b"host: b\r\n\r\n",
    "a coding within the chunks": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a body before WebSocket": POST + WEBSOCKET + b"content-length: %d\r\n\r\n" % len(GET),
    "chunks before WebSocket": POST + WEBSOCKET + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a tunnel": b"CONNECT / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(GET),
    "a tunnel to a name": b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_what_two_readers_could_read_differently_is_refused(request_bytes):
    """As one request, with the connection closed after it: what follows is never a request of its own."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(request_bytes + GET)
        assert b"/path" not in answer
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:lgm-guard:problem:malformed-http"
        assert site.refused == {"malformed-http": 1}

    run(scenario)


WISHES = {
    "HTTP/2": HTTP_2,
    "TLS": b"connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    "two": b"connection: upgrade\r\nupgrade: websocket, h2c\r\n",
}
BODIES = {"length": b"content-length: %d\r\n\r\n%b" % (len(GET), GET), "chunks": chunked(GET), "no body": b"\r\n"}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("piece_bytes", [1, 50, 10_000])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_stays_a_body(wish, body, piece_bytes):
    """As curl --http2 and Java's HttpClient send it with every request; a body of requests answers none of them."""

    async def scenario(site: Site) -> None:
        reader, _ = await site.connect()
        await until(lambda: len(site.state.connections) == 1)
        (connection,) = site.state.connections
        sent = POST + wish + body + POST + wish + body + GET.replace(b"host", wish + b"connection: close\r\nhost")
        for start in range(0, len(sent), piece_bytes):
            connection.data_received(sent[start : start + piece_bytes])
        answers = await read_to_end(reader)
        told = [json.loads(line) for line in re.findall(rb"\{.*?\}", answers)]
        size = 0 if body == b"\r\n" else len(GET)
        assert told == [{"path": "/", "body": size}] * 2 + [{"path": "/path", "body": 0}]
        assert not site.refused

    run(scenario)


def test_any_number_of_wishes_may_come_in_one_piece():
    async def scenario(site: Site) -> None:
        wish = GET.replace(b"host", HTTP_2 + b"host")
        answers = await site.ask(2000 * wish + GET.replace(b"host", b"connection: close\r\nhost"))
        assert answers.count(b"200 OK") == 2001

    run(scenario)


def test_websocket_waits_for_the_answers_before_it():
    """It would else be told to go on by what answers another request."""

    async def scenario(site: Site) -> None:
        answers = await site.ask(POST + b"content-length: 3\r\n\r\nabc" + GET.replace(b"host", WEBSOCKET + b"host"))
        assert answers.count(b"HTTP/1.1") == 1
        assert b'"body": 3}' in answers
        assert site.refused == {"malformed-http": 1}

    run(scenario)


def test_a_refusal_is_never_taken_for_the_answer_to_an_earlier_request():
    async def scenario(site: Site) -> None:
        answer = await site.ask(POST + b"content-length: 1\r\n\r\na" + b"garbage\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b"HTTP/1.1") == 1

    run(scenario)


def test_what_came_whole_is_answered_before_what_follows_ends_the_connection():
    async def scenario(site: Site) -> None:
        answer = await site.ask(POST + b"content-length: 3\r\n\r\nabc" + GET + b"\0\0 garbage\r\n\r\n" + GET)
        assert b'"body": 3}' in answer
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert b"HTTP/1.1 400" not in answer
        assert site.refused == {"malformed-http": 1}

    run(scenario)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(garbage=st.binary(min_size=1, max_size=200))
def test_no_garbage_breaks_it(garbage):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(garbage + b"\r\n\r\n" + GET)
        writer.write_eof()
        answer = await read_to_end(reader)
        assert not answer.startswith(b"HTTP/1.1 5")
        assert b"200 OK" in await site.ask(GET.replace(b"host", b"connection: close\r\nhost"))

    run(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 3000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 3000 + b": x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"a: b\r\n" for _ in range(101)) + b"\r\n",
    ],
    ids=["target", "value", "name", "number"],
)
def test_a_head_that_is_too_large_is_refused(head):
    async def scenario(site: Site) -> None:
        answer = await site.ask(head)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"2048 bytes or 100 headers, the limits" in answer
        assert site.refused == {"head-too-large": 1}

    run(scenario)


@pytest.mark.parametrize("given_id", [b"mine", b"not sane"])
@pytest.mark.parametrize(
    ("head", "status"), [(b"host: b\r\n", 400), (b"x: " + b"a" * 3000 + b"\r\n", 431)], ids=["malformed", "too large"]
)
def test_a_refused_head_gets_what_every_problem_has(head, status, given_id):
    async def scenario(site: Site) -> None:
        site.state.default_headers = [(b"date", b"today")]  # uvicorn's clock
        found, headers, body = parsed(await site.ask(POST + b"x-request-id: " + given_id + b"\r\n" + head + b"\r\n"))
        own = {"content-type", "content-length", "connection", "date", "x-request-id"}
        assert found == status
        assert headers.keys() == own | {name.decode() for name, _ in [*SECURITY_HEADERS, NO_CONTENT_POLICY]}
        assert (headers["x-request-id"] == "mine") == (given_id == b"mine")
        told = {"request_id": headers["x-request-id"], "status": status, "errors": [], "error": body["detail"]}
        assert body == body | told

    run(scenario)


def test_what_begins_no_request_gets_an_id_of_its_own():
    async def scenario(site: Site) -> None:
        _, headers, body = parsed(await site.ask(b"\0\r\n\r\n"))
        assert body["request_id"] == headers["x-request-id"] != ""

    run(scenario)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx: ",
        POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ",
        POST + b"transfer-encoding: chunked\r\n\r\n1;",
    ],
    ids=["target", "value", "trailer", "chunk extension"],
)
def test_what_never_ends_is_cut_off_at_the_limit(start):
    """One unended line would else grow in the parser's memory, whatever the limit on bodies."""

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(start)
        sent = 0
        while not site.refused:
            writer.write(b"a" * 1024)
            sent += 1024
            await asyncio.sleep(0)
            assert sent < 4_000_000
        assert (await read_to_end(reader)).startswith(b"HTTP/1.1 431")
        assert site.refused == {"head-too-large": 1}
        await until(lambda: not site.state.connections)

    run(scenario)


@pytest.mark.parametrize(
    "before",
    [POST + b"content-length: 50000\r\n\r\n" + bytes(50_000), 100 * GET],
    ids=["a long body", "many requests"],
)
@pytest.mark.parametrize(
    "cut", [10, len(POST) + 5, len(POST) + 25], ids=["in the line", "in a header", "in the body"]
)
def test_what_other_requests_left_in_a_piece_is_not_held_against_the_next(before, cut):
    """A client that was answered early sends on, and its next request comes with the rest of the last one."""

    async def scenario(site):
        reader, writer = await site.connect()
        writer.write(GET)
        assert b"/path" in await reader.readuntil(b"}")
        (connection,) = site.state.connections
        after = POST + b"content-length: 9\r\n\r\n" + bytes(9)
        connection.data_received(before + after[:cut])
        connection.data_received(after[cut:] + b"GET /end HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answers = await read_to_end(reader)
        assert b" 431 " not in answers
        assert b'"body": 9}' in answers
        assert b"/end" in answers

    run(scenario)


def test_tiny_chunks_may_frame_no_more_than_they_carry_and_a_head():
    async def scenario(site: Site) -> None:
        start = POST + b"transfer-encoding: chunked\r\n\r\n"
        fair = b"".join(b"40\r\n" + b"a" * 64 + b"\r\n" for _ in range(5000))
        reader, writer = await site.connect()
        writer.write(start + fair + b"0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert json.loads(await reader.readuntil(b"}"))["body"] == 320_000
        assert (await site.ask(start + b"1\r\na\r\n" * 500_000)).startswith(b"HTTP/1.1 431")
        assert site.refused == {"head-too-large": 1}

    run(scenario)


@pytest.mark.parametrize(
    "start",
    [b"", b"GET / HT", GET[:-2], POST + b"content-length: 5\r\n\r\nab", b"\r\n"],
    ids=["nothing", "half a line", "half a head", "half a body", "a blank line"],
)
def test_who_does_not_go_on_is_cut_off(start):
    async def scenario(site: Site) -> None:
        assert await site.ask(start) == b""
        await until(lambda: not site.state.connections)

    run(scenario, head_timeout_seconds=0.05, body_timeout_seconds=0.05)


def test_a_head_that_drips_is_cut_off_all_the_same():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        ended = asyncio.create_task(read_to_end(reader))
        writer.write(b"GET / HTTP/1.1\r\n")
        while not ended.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
        assert await ended == b""

    run(scenario, head_timeout_seconds=0.2, max_head_bytes=10**6)


def test_blank_lines_do_not_keep_an_idle_connection():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GET)
        await reader.readuntil(b"}")
        ended = asyncio.create_task(read_to_end(reader))
        while not ended.done():
            writer.write(b"\r\n")
            await asyncio.sleep(0.02)
        assert await ended == b""

    run(scenario, head_timeout_seconds=0.2)


def test_a_slow_body_that_arrives_in_time_is_taken():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(POST + b"content-length: 5\r\n\r\n")
        for byte in b"abcde":
            await asyncio.sleep(0.05)  # longer altogether than a head may take
            writer.write(bytes([byte]))
        await reader.readuntil(b"\r\n\r\n")
        assert json.loads(await reader.readuntil(b"}"))["body"] == 5

    run(scenario, head_timeout_seconds=0.1, body_timeout_seconds=30)


def test_who_does_not_read_the_answer_is_cut_off():
    async def scenario(site: Site) -> None:
        _, writer = await site.connect()
        writer.transport.pause_reading()
        writer.write(GET.replace(b"/path", b"/50000000"))
        await until(lambda: len(site.state.connections) == 1)
        await until(lambda: not site.state.connections)

    run(scenario, head_timeout_seconds=0.05)


def test_a_full_house_closes_the_connection_that_is_idle_longest():
    async def scenario(site: Site) -> None:
        idle = [await site.connect() for _ in range(3)]
        await until(lambda: len(site.house.idle) == 3)
        idle[0][1].write(GET)  # the first has just been busy, so the second is idle longest
        await idle[0][0].readuntil(b"}")
        assert b"200 OK" in await site.ask(GET.replace(b"host", b"connection: close\r\nhost"))
        assert await read_to_end(idle[1][0]) == b""
        assert len(site.state.connections) == 2

    run(scenario, max_connections=3)


def test_a_house_full_of_requests_turns_newcomers_away():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(POST + b"content-length: 5\r\n\r\nab")
        await until(lambda: len(site.state.connections) == 1 and not site.house.idle)
        assert await site.ask(GET) == b""
        writer.write(b"cde")
        assert (await reader.readuntil(b"}")).endswith(b'"body": 5}')

    run(scenario, max_connections=1)


def test_nothing_is_kept_of_connections_that_are_gone():
    async def scenario(site: Site) -> None:
        for _ in range(20):
            reader, writer = await site.connect()
            writer.write(GET)
            await reader.readuntil(b"}")
            writer.close()
        await until(lambda: not site.state.connections)
        assert not site.house.idle

    run(scenario)


NO = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"


def only_posts(method: bytes, target: bytes, given_id: bytes) -> bytes | None:
    return NO if method == b"POST" else None


@pytest.fixture(params=[False, True], ids=["parsed", "read whole"])
def run_refusing(request):
    """Runs a scenario where posts are refused, and where they were lately too."""
    return partial(run, refusal=only_posts, refuses_lately=lambda: request.param)


def test_what_is_refused_at_the_door_is_read_and_forgotten_and_the_connection_goes_on(run_refusing):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(POST + b"content-length: 100000\r\n\r\n" + b"x" * 1000)
        assert await reader.readuntil(b"no") == NO  # before the body is there
        assert not site.house.idle
        writer.write(b"x" * 99_000 + POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET)
        assert await reader.readuntil(b"no") == NO
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/path", "body": 0}')
        await until(lambda: len(site.house.idle) == 1)

    run_refusing(scenario)


def test_a_refused_request_closes_where_it_asked_to(run_refusing):
    async def scenario(site: Site) -> None:
        answer = await site.ask(POST + b"connection: close\r\ncontent-length: 3\r\n\r\nabc" + GET)
        assert answer == NO

    run_refusing(scenario)


def test_a_refusal_never_overtakes_an_answer_that_is_due(run_refusing):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GET + POST + b"content-length: 3\r\n\r\nabc")
        first = await reader.readuntil(b"}")
        assert first.endswith(b'{"path": "/path", "body": 0}')
        assert (await reader.readuntil(b"}")).endswith(b'"body": 3}')  # pipelined: the application decides

    run_refusing(scenario)


def test_a_refused_body_must_come_in_time_and_well_framed(run_refusing):
    async def scenario(site: Site) -> None:
        slow, malformed = await site.connect(), await site.connect()
        slow[1].write(POST + b"content-length: 5\r\n\r\nab")
        malformed[1].write(POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        assert await read_to_end(slow[0]) == NO
        assert await read_to_end(malformed[0]) == NO  # its one answer is out

    run_refusing(scenario, head_timeout_seconds=0.05, body_timeout_seconds=0.05)


def test_who_waits_to_be_told_to_send_is_answered_by_the_application(run_refusing):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(POST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"abc")
        assert (await reader.readuntil(b"}")).endswith(b'"body": 3}')

    run_refusing(scenario)


def test_a_wish_for_another_protocol_does_not_get_round_a_refusal(run_refusing):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(POST + HTTP_2 + b"content-length: 3\r\n\r\nabc" + GET)
        assert await reader.readuntil(b"no") == NO
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/path", "body": 0}')

    run_refusing(scenario)


WHOLE = POST + b"content-length: 3\r\n\r\nabc"


def test_whole_requests_are_refused_one_after_the_other_and_counted(run_refusing):
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        for _ in range(3):
            writer.write(WHOLE)
            assert await reader.readuntil(b"no") == NO
        writer.write(GET)
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/path", "body": 0}')
        await until(lambda: len(site.house.idle) == 1)
        assert site.state.total_requests == 4

    run_refusing(scenario)


def test_whole_requests_that_are_not_refused_go_on():
    asked = []

    def note(method: bytes, target: bytes, given_id: bytes) -> bytes | None:
        asked.append((method, target, given_id))
        return None

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        for given_id in (b"one", b"two"):
            writer.write(
                b"POST /3?a=b HTTP/1.1\r\nhost: a\r\nX-Request-ID:" + given_id + b"\r\ncontent-length: 3\r\n\r\nabc"
            )
            assert b'"body": 3}' in await reader.readuntil(b"}   ")
        assert sorted(set(asked)) == [(b"POST", b"/3?a=b", b"one"), (b"POST", b"/3?a=b", b"two")]

    run(scenario, refusal=note, refuses_lately=lambda: True)


def test_a_refused_connection_idles_no_longer_than_others():
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        for _ in range(2):
            writer.write(WHOLE)
            await reader.readuntil(b"no")
        started = asyncio.get_running_loop().time()
        assert await read_to_end(reader) == b""
        assert asyncio.get_running_loop().time() - started > 0.15

    run(scenario, refusal=only_posts, refuses_lately=lambda: True, keep_alive_seconds=0.2)


def test_a_refused_connection_that_goes_on_is_not_closed():
    """The time it may idle begins with its last refusal, not with its first; a request then ends it."""

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        loop = asyncio.get_running_loop()
        ends = loop.time() + 0.6
        while loop.time() < ends:
            writer.write(WHOLE)
            assert await reader.readuntil(b"no") == NO
            await asyncio.sleep(0.02)
        writer.write(POST + b"content-length: 3\r\n\r\nab")
        assert await reader.readuntil(b"no") == NO
        await asyncio.sleep(0.4)
        writer.write(b"c" + GET)
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/path", "body": 0}')

    run(scenario, refusal=only_posts, refuses_lately=lambda: True, keep_alive_seconds=0.2)


class Busy(Turns):
    """An event loop that never has time in the turn in which something comes."""

    def begin(self, data: bytes) -> bool:
        self._spend(0)  # the next turn comes
        return False


@pytest.fixture(params=[True, False], ids=["with room", "without"])
def run_busy(request):
    return lambda scenario, **limits: run(scenario, turns=Busy(), has_room=lambda: request.param, **limits)


def test_what_waits_for_its_turn_comes_in_order(run_busy):
    async def scenario(site: Site) -> None:
        connections = [await site.connect() for _ in range(30)]
        body = b"x" * 300_000
        for number, (_, writer) in enumerate(connections):
            head = b"POST /%d HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (number, len(body) + number)
            writer.write(head + body + b"y" * number + GET)
        for number, (reader, _) in enumerate(connections):
            answers = await reader.readuntil(b"/path")
            assert b'{"path": "/%d", "body": %d}' % (number, len(body) + number) in answers
        await until(lambda: len(site.house.idle) == 30)

    run_busy(scenario)


def test_what_waits_is_neither_idle_nor_late():
    """Held up by us, not by the client: it is not cut off for it, and answered in the end."""
    turns = Turns()
    turns._spent = 10**9  # a turn that does not end

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GET)
        await until(lambda: len(turns._waiting) == 1)
        for _ in range(3):
            newcomer, _ = await site.connect()
            assert await read_to_end(newcomer) == b""  # the one that waits does not make room
        await asyncio.sleep(0.3)
        turns._next()
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/path", "body": 0}')

    run(scenario, turns=turns, max_connections=1, head_timeout_seconds=0.05, keep_alive_seconds=0.05)


def test_what_waits_at_the_end_is_still_answered():
    turns = Turns()
    turns._spent = 10**9

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GET)
        await until(lambda: len(turns._waiting) == 1)
        for connection in list(site.state.connections):
            connection.shutdown()
        assert b'{"path": "/path", "body": 0}' in await read_to_end(reader)

    run(scenario, turns=turns)


def test_who_goes_while_it_waits_is_forgotten():
    turns = Turns()
    turns._spent = 10**9

    async def scenario(site: Site) -> None:
        _, writer = await site.connect()
        writer.write(GET)
        await until(lambda: turns.num_requests == 1)
        for connection in list(site.state.connections):
            connection.transport.abort()
        await until(lambda: not site.state.connections)
        turns._next()
        assert turns.num_requests == 0
        assert not site.house.idle

    run(scenario, turns=turns)


def test_probes_do_not_wait():
    turns = Turns()
    turns._spent = 10**9

    async def scenario(site: Site) -> None:
        _, held = await site.connect()
        held.write(GET)
        await until(lambda: turns.num_requests == 1)
        reader, writer = await site.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.readuntil(b"}")).endswith(b'{"path": "/healthz", "body": 0}')

    run(scenario, turns=turns)
