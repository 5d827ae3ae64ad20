"""`lgm evaluate --engine ray`: an evaluation's batches, each a Ray task, wherever there is room for it."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectors.distributed.cluster import POLL_SECONDS, RETRIES, Head, Workers, connected, import_ray
from detectors.distributed.judging import load_version
from detectors.evaluation.batches import Batch
from detectors.evaluation.judging import judge_batch
from detectors.evaluation.parts import Part
from detectors.evaluation.settings import Task
from detectors.evaluation.surroundings import hardware
from detectors.screener import Screener

AHEAD = 2  # batches for each worker, so that none waits for its next one


@dataclass(frozen=True, kw_only=True, slots=True)
class Attacked:
    """The bundle, which lies at the same path on each machine, and where on it it is run."""

    bundle: Path
    version: str
    device: str


def judge_there(attacked: Attacked, task: Task | None, batch: Batch) -> Part:
    """What a worker does. Raises BundleError where its machine's bundle is another version, AttackError."""
    return judge_batch(_screener(attacked), task, batch)


def hardware_there(attacked: Attacked) -> dict[str, Any]:
    """What a worker judges on; raises BundleError as `judge_there` does."""
    return hardware(_screener(attacked).device)


@lru_cache(maxsize=1)
def _screener(attacked: Attacked) -> Screener:
    """Loaded once a process, which Ray gives many tasks."""
    return load_version(attacked.bundle, attacked.version, attacked.device)


class RayEngine:
    """Spreads batches over a cluster. Every method raises ClusterError where it or a worker is lost for good."""

    def __init__(self, head: Head, attacked: Attacked, workers: Workers, resources: dict[str, float]):
        self._head = head
        self._attacked = attacked
        self._num_workers = workers.count()  # asked once: of a lost head node it would be asked for ever
        self._num_ahead = workers.num or AHEAD * self._num_workers
        remote = import_ray().remote(max_retries=RETRIES, **resources)
        self._judge = remote(judge_there)
        self._hardware = self._wait(remote(hardware_there).remote(attacked))

    def judge(self, task: Task | None, batches: Iterable[Batch]) -> Iterator[Part]:
        """Each batch's part, in order; few batches are under way at once, so that no store need hold them all."""
        waiting: deque[Any] = deque()
        for batch in batches:
            if len(waiting) >= self._num_ahead:
                yield self._wait(waiting.popleft())
            waiting.append(self._judge.remote(self._attacked, task, batch))
        while waiting:
            yield self._wait(waiting.popleft())

    def hardware(self) -> dict[str, Any]:
        return {**self._hardware, "engine": "ray", "workers": self._num_workers}

    def _wait(self, reference: Any) -> Any:
        """For as long as the head node is there: Ray itself would wait for it."""
        ray = import_ray()
        while True:
            try:
                return ray.get(reference, timeout=POLL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                self._head.check()
            except ray.exceptions.RayError as error:
                raise self._head.told(error) from None


@contextmanager
def ray_engine(attacked: Attacked, address: str | None, workers: Workers) -> Iterator[RayEngine]:
    """Raises ConfigurationError, ClusterError, BundleError."""
    with connected(address) as head:
        yield RayEngine(head, attacked, workers, workers.resources(address))
