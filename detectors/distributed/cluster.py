"""The Ray that work is spread over: one of this machine's own, or a cluster that runs already."""

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from model.errors import ConfigurationError, LGMGuardError

LOCAL_STORE_BYTES = 128 * 1024 * 1024  # only numbers of blocks and counts pass through it
REACH_SECONDS = 5.0
LOST_SECONDS = 10.0
POLL_SECONDS = 1.0
RETRIES = 3  # of a block whose worker died: one that kills each of them must end the run


class ClusterError(LGMGuardError):
    """A cluster that cannot be reached, or that was lost on the way."""


@contextmanager
def connected(address: str | None) -> Iterator["Head"]:
    """Ray, started here for as long as this lasts where no address is given; `auto` finds this machine's cluster.

    Sends no usage statistics and starts no dashboard. Raises ConfigurationError where ray is missing, ClusterError.
    """
    check_ray()
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_ray()
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from None
    named = address if address and ":" in address else None  # as its user knows it
    head = Head(named or ray.get_runtime_context().gcs_address)
    try:
        yield head
    finally:
        if head.is_there():  # else it would wait for it
            ray.shutdown()


class Head:
    """The cluster's first node, that knows of all others; without it nothing is scheduled any more."""

    def __init__(self, address: str):
        self.address = address
        self._missed_since: float | None = None

    def check(self) -> None:
        """Raises ClusterError once it has not answered for LOST_SECONDS."""
        if self.is_there():
            self._missed_since = None
        elif self._missed_since is None:
            self._missed_since = time.monotonic()
        elif time.monotonic() - self._missed_since > LOST_SECONDS:
            raise self._lost()

    def told(self, error: BaseException) -> BaseException:
        """What ended a run, for a person: an error of our own that a worker raised, found in what Ray wraps it in."""
        from ray.exceptions import RayError

        found: BaseException | None = error
        while found is not None:
            if isinstance(found, LGMGuardError) and not isinstance(found, RayError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
        if not self.is_there():
            return self._lost()
        return ClusterError(f"the Ray run ended: {str(error).strip().splitlines()[-1]}")

    def _lost(self) -> ClusterError:
        return ClusterError(f"the head node of the Ray cluster, {self.address}, is lost")

    def is_there(self) -> bool:
        return _answers(self.address)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """num: by default as many as find room. gpus: of each, beside one processor."""

    num: int | None = None
    gpus: float = 0

    def resources(self, address: str | None) -> dict[str, float]:
        """Raises ConfigurationError where Ray, on this machine alone, would wait for a GPU for ever."""
        if address is None and self.gpus > import_ray().cluster_resources().get("GPU", 0):
            raise ConfigurationError(f"gpus_per_actor: {self.gpus:g} wanted, this machine has no such GPU")
        return {"num_cpus": 1, "num_gpus": self.gpus} if self.gpus else {"num_cpus": 1}

    def count(self) -> int:
        """How many there are to be, at least one."""
        room = import_ray().cluster_resources().get("GPU" if self.gpus else "CPU", 1)
        return self.num or max(1, int(room / (self.gpus or 1)))


def check_ray() -> None:
    """Raises ConfigurationError."""
    if find_spec("ray") is None:
        raise ConfigurationError("this needs ray: pip install 'lgm-guard[scale]'")


def import_ray() -> Any:
    """Its own deprecations, which it sees when it is loaded, are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # a command's stderr is for its user
    return ray


def _check_address(address: str | None) -> None:
    if address is None or address == "auto":
        return
    if "://" in address or ":" not in address:
        raise ConfigurationError(f"address: {address!r} must be HOST:PORT of the head node (port 6379), or auto")
    if not _answers(address):
        raise ClusterError(f"no Ray cluster answers at {address} within {REACH_SECONDS:g} s")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError, ValueError), socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS):
        return True
    return False
