"""Log lines to stderr, for a person or as JSON; one a request, with its id, its key's id and its trace's id."""

import json
import logging
import logging.config
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from textwrap import indent
from types import MappingProxyType
from typing import Any, Literal

PREFIXES = {"request_id": "", "key": "key=", "trace_id": "trace="}
IDENTITIES = tuple(PREFIXES)
EXTRAS = (*IDENTITIES, "method", "route", "status", "duration_seconds")

# The state of the request that is being served, so that every line of it can say whose it is. It is set anew for each
# request: a connection's later requests may inherit the context of an earlier one.
NOBODY: Mapping[str, Any] = MappingProxyType({})
request_state: ContextVar[Mapping[str, Any]] = ContextVar("request_state", default=NOBODY)


class Identities(logging.Filter):
    """Adds to each record the identities of the request it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        state = request_state.get()
        for name in IDENTITIES:
            if name in state:
                vars(record).setdefault(name, state[name])
        return True


class ConsoleFormatter(logging.Formatter):
    """One line a record, whatever is in its message; its traceback, further in, below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        said = vars(record)
        identities = [PREFIXES[name] + said[name] for name in IDENTITIES if name in said]
        line = super().formatMessage(record)
        return _printable(f"{line} [{' '.join(identities)}]" if identities else line)

    def formatException(self, exc_info: Any) -> str:
        told = super().formatException(exc_info)
        return indent("\n".join(map(_printable, told.split("\n"))), "  ")


def _printable(text: str) -> str:
    """What callers send ends no line and moves no terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name in EXTRAS},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


# What each record would ask for and no line here tells (the logging module's own advice).
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def configure_logs(*, style: Literal["console", "json"], level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    handler.addFilter(Identities())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
