"""The page's process beside a service: `python -m service.dashboard FD`, options on the first line of stdin.

It listens on a socket that it inherits, and ends when whoever started it does: then stdin does.
"""

import os
import socket
import sys
import threading

from service.dashboard.app import serve
from service.dashboard.options import Options
from service.logs import configure_logs

NICENESS = 12  # predictions come first, their workers (10) too


def main() -> None:
    options = Options.model_validate_json(sys.stdin.readline())
    configure_logs(style=options.log_format, level=options.log_level)
    os.nice(NICENESS)
    listener = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    serve(options, listener)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
