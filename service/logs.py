"""Log lines to stderr, for a person or as JSON; one a request, with its id."""

import json
import logging
import logging.config
import sys
from datetime import UTC, datetime
from typing import Literal

EXTRAS = ("request_id", "method", "route", "status", "duration_seconds")


class ConsoleFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        request_id = vars(record).get("request_id")
        line = super().format(record)
        return f"{line} [{request_id}]" if request_id else line


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
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
