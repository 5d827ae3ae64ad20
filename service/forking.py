"""Where worker processes come from: forked from one that has imported all they need and has run nothing.

It has no thread and no CUDA, so forking it is safe, and a worker that replaces another starts in a moment.
Imports of this file are few: it is read before anything else is.
"""

from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.plan import Plan


def worker_context() -> ForkServerContext:
    """The context to start workers in; their first one waits for what is imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", "service.worker"])
    return context


def run_worker(plan: "Plan", connection: Connection) -> None:
    """A worker from its first to its last line, in its own process; whoever starts it imports no torch."""
    from service.worker import run

    run(plan, connection)


def begin_imports() -> None:
    """Start the process that workers are forked from, to import on its processor while this one does on another."""
    worker_context()
    forkserver.ensure_running()
