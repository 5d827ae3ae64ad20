"""What else bears the load beside the replicas, and at which rate each part gives in.

Every load here grows with the rate of images, so each part has one rate at which it is full; the least of them comes
first. The limits are figures of the parts' own documents or plain assumptions, each with its source beside it, and
yours to replace.
"""

import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from model.errors import ConfigurationError
from service.capacity.curve import Curve
from service.settings import Settings

SECONDS_PER_HOUR = 3600
LARGEST = 1e18
REMEDIES = {
    "people who review": "show them a sample; flagged images beyond it without their bytes (quarantine = metadata)",
    "quarantine's room": "raise quarantine_max_items and quarantine_max_bytes, or keep a sample",
    "quarantine's rows": "a database for each cell of replicas, read together by who reviews",
    "quarantine's connections": "PgBouncer before PostgreSQL",
    "quarantine's files": "a prefix or a bucket for each cell of replicas",
    "a replica's writing thread": "what is too much is dropped and counted; keep metadata only",
    "metrics": "a Prometheus for each cell, recording rules above; drop lgm_class_images_total",
    "balancer's requests": "several balancers behind DNS or anycast; more images a request",
    "balancer's network": "several balancers; answers that go past them",
    "shared rate limits": "limits at the balancer, or Redis sharded by key",
    "cluster": "several clusters, each a cell of its own; larger replicas",
    "log": "a smaller access_log_share; failed requests keep their lines",
    "registry of versions": "each activates for itself: roll versions by image, setting or storageUri",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the surroundings can. Raises ConfigurationError for what is not a number above 0 and at most 1e18."""

    # A person who looks at a flagged image and presses a key; four seconds each, a hundred people.
    reviews_per_second: float = 25
    # Of lgm-guard's own writing thread, in each replica: service/README.md, 830 microseconds an image.
    writes_per_replica_per_second: float = 1 / 830e-6
    # One PostgreSQL primary that commits batches of rows; assumed, measure yours.
    database_rows_per_second: float = 20_000
    # PostgreSQL's default max_connections.
    database_connections: float = 100
    # A replica's writing thread, and whoever reviews through it; SQLAlchemy's pool would let it take fifteen.
    connections_per_replica: float = 2
    # Amazon S3 for each prefix, by its user guide.
    store_writes_per_second: float = 3_500
    # One Prometheus server of about 8 GiB; assumed.
    prometheus_series: float = 2_000_000
    # One layer-7 balancer on a few cores; assumed.
    balancer_requests_per_second: float = 50_000
    # A network card of 25 Gbit/s.
    balancer_bytes_per_second: float = 25e9 / 8
    # One Redis, for rate limits that replicas share; assumed.
    redis_requests_per_second: float = 100_000
    # Kubernetes' tested limit for one cluster, by its documentation on large clusters.
    cluster_pods: float = 150_000
    # Lines of log that one collector takes; assumed.
    log_lines_per_second: float = 50_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
                said = repr(value)[:20]  # of a number of any length
                raise ConfigurationError(
                    f"limits: {name} must be a number above 0 and at most {LARGEST:g}, not {said}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """full_at: images a second in all at which it can no more. remedy: what to do before."""

    name: str
    full_at: float
    unit: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What a second of it is like. Raises ConfigurationError that names the limit.

    flagged_share: of all images, kept for review each. access_log_share: the service's setting. images_per_replica: a
    second.
    """

    images_per_request: int
    images_per_replica: float
    flagged_share: float = 0.01
    access_log_share: float = Settings.model_fields["access_log_share"].default

    def __post_init__(self) -> None:
        for name in ("flagged_share", "access_log_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be above 0 and at most 1, not {getattr(self, name):g}")


def parts(curve: Curve, traffic: Traffic, limits: Limits) -> list[Part]:
    """All of them, the first to give in first."""
    found = [
        Part(name=name, full_at=limit / taken if taken else math.inf, unit=unit.format(limit), remedy=REMEDIES[name])
        for name, (limit, unit, taken) in _budgets(curve, traffic, limits).items()
    ]
    return sorted(found, key=lambda part: part.full_at)


def _budgets(curve: Curve, traffic: Traffic, limits: Limits) -> dict[str, tuple[float, str, float]]:
    """What there is of each part, how that is said, and what an image takes of it."""
    flagged, requests = traffic.flagged_share, 1 / traffic.images_per_request
    replicas = 1 / traffic.images_per_replica
    series, connections = replicas * curve.series, replicas * limits.connections_per_replica
    lines = requests * traffic.access_log_share
    questions = requests * (1 if traffic.images_per_request == 1 else 2)  # the second charges for the further images
    room = Settings.model_fields["quarantine_max_items"].default
    writes = limits.writes_per_replica_per_second
    # More replicas share it out, so it is too much from the first image on, or never.
    written = 0 if flagged * traffic.images_per_replica <= writes else math.inf
    return {
        "people who review": (limits.reviews_per_second, "{:g} images a second", flagged),
        "quarantine's room": (room, "{:,} items, to last an hour", flagged * SECONDS_PER_HOUR),
        "quarantine's rows": (limits.database_rows_per_second, "{:,.0f} rows a second", flagged),
        "quarantine's connections": (limits.database_connections, "{:,.0f} connections", connections),
        "quarantine's files": (limits.store_writes_per_second, "{:,.0f} writes a second and prefix", flagged),
        "a replica's writing thread": (writes, "{:,.0f} images a second and replica", written),
        "metrics": (limits.prometheus_series, f"{{:,.0f}} series, {curve.series} a replica", series),
        "balancer's requests": (limits.balancer_requests_per_second, "{:,.0f} requests a second", requests),
        "balancer's network": (limits.balancer_bytes_per_second, "{:,.0f} bytes a second", curve.request_bytes),
        "shared rate limits": (limits.redis_requests_per_second, "{:,.0f} requests a second", questions),
        "cluster": (limits.cluster_pods, "{:,.0f} pods", replicas),
        "log": (limits.log_lines_per_second, "{:,.0f} lines a second", lines),
        "registry of versions": (1, "one replica", replicas),
    }


def read_limits(path: Path) -> Limits:
    """A TOML file with some of the limits. Raises ConfigurationError that names the file, the limit or the key."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"limits: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"limits: {path} is not TOML: {error}") from None
    known = {field.name for field in fields(Limits)}
    if unknown := sorted(set(given) - known):
        raise ConfigurationError(f"limits: {path}: {unknown[0]} is unknown; there are {', '.join(sorted(known))}")
    return Limits(**given)
