"""How many replicas a rate needs so that waits stay short, and what they cost."""

import math
from dataclasses import dataclass

import numpy as np

from model.errors import ConfigurationError
from service.capacity.curve import Curve
from service.capacity.simulation import Outcome, Replica, simulate

SEARCHES = 7  # halvings of the load: found to within 1 % of what a replica can
MORE = 0.005  # of the replicas, that are added where what is asked does not hold
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What is asked. Raises ConfigurationError that names the limit.

    price_per_hour: of one replica, in any currency. most_wait_seconds: that 99 % of requests may wait
    until a worker has them. most_load: share of what a replica can; closer to all of it, a simulation of finite
    length says little of waits, and one lost replica would tip the others over. most_busy: share of the time that
    workers judge; what scales in deploy/kubernetes adds replicas beyond the default. num_requests: that are simulated
    for each figure.
    """

    images_per_request: int = 1
    most_wait_seconds: float = 0.05
    most_load: float = 0.8
    most_busy: float = 0.6
    price_per_hour: float = 0.1
    num_requests: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_request <= 1024:
            raise ConfigurationError(f"images per request must be from 1 to 1024, not {self.images_per_request}")
        if not 0 < self.most_wait_seconds <= 60:
            raise ConfigurationError(f"the wait must be more than 0 and at most 60 s, not {self.most_wait_seconds:g}")
        if not 0 < self.most_load <= 0.95:
            raise ConfigurationError(f"the load must be more than 0 and at most 0.95, not {self.most_load:g}")
        if not 0 < self.most_busy <= 1:
            raise ConfigurationError(f"the busy share must be more than 0 and at most 1, not {self.most_busy:g}")
        if not 0 <= self.price_per_hour < math.inf:
            raise ConfigurationError(f"the price must be at least 0, not {self.price_per_hour:g}")
        if not 1_000 <= self.num_requests <= 10_000_000:
            raise ConfigurationError(f"simulated requests must be from 1000 to 10000000, not {self.num_requests}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """For one rate in images a second; waits in seconds, p99_queue_wait being the queue's part, that metrics tell."""

    rate: float
    replicas: int
    p50_wait: float
    p99_wait: float
    p99_queue_wait: float
    busy_share: float
    cost_per_million: float


def replica_of(curve: Curve, *, cores: int | None = None, workers: int | None = None) -> Replica:
    """The measured replica, or one of as many processors and workers of the same kind."""
    loop = curve.loop_cost()
    return Replica(
        request_seconds=loop,
        handover_seconds=loop.batch,
        batch_seconds=curve.batch_cost(),
        cores=cores or curve.cores,
        workers=workers or curve.workers,
    )


def most_images_per_second(replica: Replica, images_per_request: int) -> float:
    """What it can with full batches and nothing to spare: the least of its processors, its workers and its loop."""
    request = replica.request_seconds(images_per_request) / images_per_request
    loop = request + replica.handover_seconds / replica.max_batch_size
    worker = replica.batch_seconds(replica.max_batch_size) / replica.max_batch_size
    return 1 / max((loop + worker) / replica.cores, worker / replica.workers, loop)


def images_per_replica(replica: Replica, demand: Demand) -> float:
    """The most images a second, up to the load asked, that keep what is asked of waits and workers; none is refused.

    Raises ConfigurationError where even a nearly idle replica refuses them, makes them wait longer or is too busy.
    """
    most = most_images_per_second(replica, demand.images_per_request)

    def good(share: float) -> bool:
        return _is_kept(demand, _try(replica, demand, share * most))

    if good(demand.most_load):
        return demand.most_load * most
    low, high = 0.0, demand.most_load
    for _ in range(SEARCHES):
        share = (low + high) / 2
        low, high = (share, high) if good(share) else (low, share)
    if low == 0:
        wait, busy = f"wait longer than {demand.most_wait_seconds:g} s", f"busy for more than {demand.most_busy:g}"
        size = f"requests of {demand.images_per_request} images"
        raise ConfigurationError(
            f"{size} are refused, or {wait}, or keep workers {busy}, even by a nearly idle replica"
        )
    return low * most


def plan(replica: Replica, demand: Demand, *, rate: float, per_replica: float) -> Plan:
    """For a rate of images a second in all, from `images_per_replica` on; what is asked holds at that many.

    Raises ConfigurationError where the rate is not more than 0.
    """
    if not 0 < rate < math.inf:
        raise ConfigurationError(f"the rate must be more than 0 images a second, not {rate:g}")
    replicas = max(1, math.ceil(rate / per_replica - 1e-9))
    while not _is_kept(demand, outcome := _try(replica, demand, rate / replicas)):
        replicas += math.ceil(replicas * MORE)  # a little less load may wait a little longer, by chance
    per_million = demand.price_per_hour * replicas / (rate * SECONDS_PER_HOUR) * 1e6
    return Plan(
        rate=rate,
        replicas=replicas,
        p50_wait=outcome.wait(50),
        p99_wait=outcome.wait(99),
        p99_queue_wait=outcome.queue_wait(99),
        busy_share=outcome.busy_share,
        cost_per_million=per_million,
    )


def _is_kept(demand: Demand, outcome: Outcome) -> bool:
    if outcome.refused or outcome.busy_share > demand.most_busy:
        return False
    return outcome.wait(99) <= demand.most_wait_seconds


def _try(replica: Replica, demand: Demand, images_per_second: float) -> Outcome:
    """The same random numbers each time, so that two loads differ by little else."""
    return simulate(
        replica,
        requests_per_second=images_per_second / demand.images_per_request,
        images_per_request=demand.images_per_request,
        num_requests=demand.num_requests,
        generator=np.random.default_rng(demand.seed),
    )
