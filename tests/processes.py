"""Which processes a server has, and that they end."""

import psutil

TIMEOUT = 30


def family_of(pid: int) -> list[psutil.Process]:
    """The process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def workers_of(pid: int) -> list[psutil.Process]:
    """Those that were forked from the fork server: the leaves that judge."""
    return [
        child
        for process in psutil.Process(pid).children()
        for child in process.children()
        if "forkserver" in " ".join(process.cmdline())
    ]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=TIMEOUT)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
