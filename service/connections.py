"""Connections under limits: uvicorn's protocol with what it lacks against slow, half-open and oversized peers.

A head must arrive in time and within its size. A body must arrive in time, and what frames it (chunk sizes,
trailers) may take no more than a head and the body itself. A full house closes the connection that has been idle
longest, so that nobody keeps others out by doing nothing. A peer that does not read its answer is cut off. What can
only be refused is refused here, and its body thrown away as it comes.
"""

import asyncio
import math
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.headers import request_id_of
from service.heads import (
    MALFORMED,
    MAX_HEADERS,
    UNSURE_UPGRADE,
    Refusal,
    RefusedHeadError,
    announces_body,
    is_surely_framed,
    too_large,
)
from service.house import House
from service.joined_writes import JoinedWrites
from service.upgrades import IgnoringUpgrades
from service.whole_request import read_whole

MAX_KEPT_BYTES = 16 * 1024


class Connection(IgnoringUpgrades):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        house: House,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self._house = house
        self._in_head = self._in_message = False
        self._read_bytes = self._body_bytes = 0  # in the last piece that came
        self._others_bytes = 0  # of bodies in it that ended before the message that goes on began
        self._begins = False  # the message in it
        self._surplus_bytes = 0  # of the message in the pieces before, beyond twice its body
        self._due = math.inf
        self._unread_bytes = 0
        self._refusal = MALFORMED
        self._refused = False  # this message is answered already
        self._refused_whole_at = -math.inf
        self._kept = b""  # what came when the event loop had enough to do
        self._pauses = False  # so that no more comes
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._writes))
        if len(self.connections) > self._house.max_connections and not self._make_room():
            self.loop.call_soon(transport.abort)
            return
        self._house.idle[self] = None
        self._await_client(self._house.head_timeout_seconds)
        self._look_again_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.idle.pop(self, None)
        self._stop_looking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            self._pause_where_much_is_kept()
        elif self._house.turns.begin(data):
            self._take(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Until the event loop has time for it."""
        self._kept = data
        self._pause_where_much_is_kept()
        is_request = not self._in_message
        if is_request and not self._house.has_room():
            self._house.turns.wait_for_no(self._take_kept)
        else:
            self._house.turns.wait(self._take_kept, is_request=is_request)

    def _pause_where_much_is_kept(self) -> None:
        if len(self._kept) > MAX_KEPT_BYTES and not self._pauses:
            self._pauses = True
            self._writes.pause_reading()

    def _take_kept(self) -> None:
        data, self._kept = self._kept, b""
        if data and not self.transport.is_closing():
            if self._pauses:
                self._pauses = False
                self._writes.resume_reading()
            self._take(data)

    def shutdown(self) -> None:
        self._take_kept()  # it came before the end
        super().shutdown()

    def _take(self, data: bytes) -> None:
        if self._house.refuses_lately() and self._refuse_whole(data):
            return
        self._read_bytes, self._body_bytes, self._begins = len(data), 0, False
        super().data_received(data)
        if self._in_message:
            self._surplus_bytes += self._own_bytes(data)
            if self._surplus_bytes > self._house.max_head_bytes:
                self._refuse_size()
        elif self._due == math.inf and self in self._house.idle:
            # Blank lines between requests: they have ended the keep-alive's timer and begin no request.
            self._await_client(self._house.head_timeout_seconds)

    def _own_bytes(self, data: bytes) -> int:
        """How much of this piece is the message's that goes on: others may end where it begins."""
        if not self._begins:
            return len(data)
        if self._in_head:
            return len(data) - max(self._others_bytes, data.rfind(b"\r\n\r\n") + 4)
        # chunks' frames count from the next piece on
        return self._head_bytes() + self._body_bytes - self._others_bytes

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = self._begins = True
        self._surplus_bytes, self._others_bytes = 0, self._body_bytes
        self._await_client(self._house.head_timeout_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.rstrip(b" \t"))  # blanks around a value are none of it (RFC 9110, 5.5)

    def on_headers_complete(self) -> None:
        refusal = self._refusal_of_head()
        if refusal is not None:
            self._refusal = refusal
            raise RefusedHeadError
        if self.parser.should_upgrade():
            return super().on_headers_complete()
        self._in_head = False
        self._house.idle.pop(self, None)
        self._await_client(self._house.body_timeout_seconds)
        if not self._refuse():
            self._house.turns.let_in()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._surplus_bytes -= 2 * len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._due = math.inf
        if not self._refused:
            return super().on_message_complete()
        self._refused = False
        self.on_response_complete()
        if not self.parser.should_keep_alive():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self._house.idle[self] = None

    def handle_websocket_upgrade(self) -> None:
        self._house.idle.pop(self, None)
        self._stop_looking()
        self._house.turns.let_in()
        self.transport = self._writes.release()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses, unless an earlier request's answer is still due in its place."""
        self._house.on_refusal(self._refusal.code)
        if self._refused or self._owes_an_answer():
            return self._close_after_answers()
        request_id = request_id_of(self._given_id() if self._in_message else b"")
        answer = self._refusal.answer(request_id, over_tls=self.scheme == "https")
        self.transport.write(self._with_own_headers(answer))
        self.transport.close()

    def _close_after_answers(self) -> None:
        """Those to requests that came whole before; one whose body is what cannot be read gets none."""
        if self._refused or (self._in_message and not self._in_head):
            return self.transport.close()
        self.cycle.keep_alive = False  # the last in the queue
        self._due = math.inf

    def _refuse(self) -> bool:
        """Whether all that can be said to this request is said."""
        if self._has_unanswered() or self.expect_100_continue:
            return False
        answer = self._house.refusal(self.parser.get_method(), self.url, self._given_id())
        self._refused = answer is not None
        if answer is not None:
            self._writes.write(self._with_own_headers(answer))
        return self._refused

    def _given_id(self) -> bytes:
        return next((value for name, value in self.headers if name == b"x-request-id"), b"")

    def _refuse_whole(self, data: bytes) -> bool:
        """Refuse a request that came in one piece, if that is all that can be done, without a parser."""
        if self._in_message or self._has_unanswered() or self.transport.is_closing():
            return False
        request = read_whole(data, max_head_bytes=self._house.max_head_bytes)
        if request is None:
            return False
        answer = self._house.refusal(request.method, request.target, request.given_id)
        if answer is None:
            return False
        self._writes.write_at_once(self._with_own_headers(answer))
        self._count_whole()
        return True

    def _count_whole(self) -> None:
        """The connection is idle again; uvicorn, which has not seen this request, takes its time from another."""
        self.server_state.total_requests += 1
        self._due = math.inf
        self._refused_whole_at = self.loop.time()
        self._house.idle.pop(self, None)
        self._house.idle[self] = None
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        left = self._refused_whole_at + self.timeout_keep_alive - self.loop.time()
        if self._kept:
            left = self.timeout_keep_alive
        if left > 0:
            return self._keep_alive_for(left)
        super().timeout_keep_alive_handler()

    def _with_own_headers(self, answer: bytes) -> bytes:
        status_line, _, rest = answer.partition(b"\r\n")
        own = b"".join(b"\r\n%b: %b" % header for header in self.server_state.default_headers)
        return status_line + own + b"\r\n" + rest

    def _has_unanswered(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _refusal_of_head(self) -> Refusal | None:
        if len(self.headers) > MAX_HEADERS or self._head_is_too_large():
            return too_large(self._house.max_head_bytes)
        if not is_surely_framed(self.headers, self.parser.get_http_version()):
            return MALFORMED
        return self._refusal_of_upgrade() if self.parser.should_upgrade() else None

    def _refusal_of_upgrade(self) -> Refusal | None:
        if self.parser.get_method() == b"CONNECT":  # which is one for the parser
            return MALFORMED
        if self._should_upgrade() and (self._has_unanswered() or announces_body(self.headers)):
            return UNSURE_UPGRADE
        return None

    def _head_is_too_large(self) -> bool:
        limit = self._house.max_head_bytes
        if self._surplus_bytes + self._read_bytes <= limit:  # of nearly every request
            return False
        return self._head_bytes() > limit

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _owes_an_answer(self) -> bool:
        """Whether another answer than the refusal would have to come first, or has begun."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        in_body = self._in_message and not self._in_head
        return not in_body or bool(self.pipeline) or self.cycle.response_started

    def _refuse_size(self) -> None:
        if not self.transport.is_closing():
            self._refusal = too_large(self._house.max_head_bytes)
            self.send_400_response("")

    def _make_room(self) -> bool:
        oldest = next((connection for connection in self._house.idle if not connection._kept), None)
        if oldest is not None:
            del self._house.idle[oldest]
            oldest.transport.abort()
        return oldest is not None

    def _await_client(self, seconds: float) -> None:
        self._due = self.loop.time() + seconds

    def _look_again_later(self) -> None:
        self._timer = self.loop.call_later(self._house.head_timeout_seconds, self._look)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        unread_before, self._unread_bytes = self._unread_bytes, self.transport.get_write_buffer_size()
        stuck = 0 < unread_before <= self._unread_bytes
        is_late = self.loop.time() >= self._due and not self._kept
        if stuck or is_late or self.transport.is_closing():
            self.transport.abort()
        else:
            self._look_again_later()
