"""Where worker processes come from: forked from one that has imported all they need and has run nothing.

It has no thread and no CUDA, so forking it is safe, and a worker that replaces another starts in a moment.
Imports of this file are few: it is read before anything else is.
"""

from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext


def worker_context() -> ForkServerContext:
    """The context to start workers in; their first one waits for what is imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", "service.worker"])
    return context


def begin_imports() -> None:
    """Start the process that workers are forked from, to import on its processor while this one does on another."""
    worker_context()
    forkserver.ensure_running()
