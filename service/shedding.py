"""Overload said at the door: a 503 before the request becomes one of the application's.

Under several times the load that can be served, most of what the process does is refuse. Through the application a
refusal costs what a good part of an answer costs; here it is a few look-ups and one write, and the processors are
left to those who are served. Whoever is overloaded says so before it looks at keys.
"""

import asyncio
import logging

from service.engine import Engine
from service.errors import NotReadyError, OverloadedError, UnknownModelError
from service.headers import request_id_of
from service.heads import problem_head
from service.problems import problem_body
from service.runtime import Runtime
from service.turns import Turns

logger = logging.getLogger("service.access")

PREDICT = "/v1/predict"
INFER = "/v2/models/{name}/infer"
INFER_VERSION = "/v2/models/{name}/versions/{version}/infer"
LATELY_SECONDS = 0.2


class Shedding:
    """Knows the routes that judge images; all others, and all errors, are the application's.

    Many requests arrive in one turn of the event loop, and none takes its place before the next: those that wait or
    were let in count as if they had.
    """

    def __init__(self, runtime: Runtime, turns: Turns, *, over_tls: bool):
        self._runtime, self._turns = runtime, turns
        self._refuses_lately = False
        self._head = problem_head(503, over_tls=over_tls)

    def refuses_lately(self) -> bool:
        """Whether a request was refused within LATELY_SECONDS, so that the next may well be."""
        return self._refuses_lately

    def has_room(self) -> bool:
        """Whether a request for the bundle that answers by default would be let in."""
        try:
            self._check_room(self._runtime.engine_for())
        except OverloadedError:
            return False
        except (UnknownModelError, NotReadyError):
            return True  # which is for the application to say
        return True

    def _check_room(self, engine: Engine) -> None:
        """Raises OverloadedError."""
        count = 1 + self._turns.num_requests
        engine.check_room(count)
        self._runtime.flight.check_room(count)

    def refusal(self, method: bytes, target: bytes, given_id: bytes) -> bytes | None:
        """The whole answer, where the application could only refuse; None where it is to decide."""
        if method != b"POST" or self._runtime.draining:
            return None
        try:
            route, engine = self._find(target.partition(b"?")[0].decode())
            self._check_room(engine)
        except OverloadedError as error:
            return self._answer(route, error, given_id)
        except (LookupError, ValueError, UnknownModelError, NotReadyError):
            return None
        return None

    def _remember(self) -> None:
        if not self._refuses_lately:
            self._refuses_lately = True
            asyncio.get_running_loop().call_later(LATELY_SECONDS, self._forget)

    def _forget(self) -> None:
        self._refuses_lately = False

    def _find(self, path: str) -> tuple[str, Engine]:
        """Raises LookupError for any other route."""
        if path == PREDICT:
            return PREDICT, self._runtime.engine_for()
        match path.split("/"):
            case ["", "v2", "models", name, "infer"]:
                return INFER, self._runtime.engine_for(name)
            case ["", "v2", "models", name, "versions", version, "infer"]:
                return INFER_VERSION, self._runtime.engine_for(name, version)
        raise LookupError(path)

    def _answer(self, route: str, error: OverloadedError, given_id: bytes) -> bytes:
        self._remember()
        request_id = request_id_of(given_id)
        body = problem_body(503, str(error), code=error.code, request_id=request_id.decode())
        self._record(route, error, request_id)
        own = b"retry-after: %d\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
        return self._head + own % (error.retry_after_seconds, request_id, len(body)) + body

    def _record(self, route: str, error: OverloadedError, request_id: bytes) -> None:
        self._runtime.metrics.rejected.labels(error.code).inc()
        self._runtime.request_answered(route, 503, 0.0)
        if self._runtime.refusals.worth_a_line():
            extra = {"request_id": request_id.decode(), "method": "POST", "route": route, "status": 503}
            logger.info("POST %s 503 at the door", route, extra=extra)
