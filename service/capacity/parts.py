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


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the surroundings can. Raises ConfigurationError for what is not a number above 0."""

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
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigurationError(f"limits: {name} must be a number above 0, not {value!r}")


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

    flagged_share: of all images, kept for review each. images_per_replica: a second.
    """

    images_per_request: int
    images_per_replica: float
    flagged_share: float = 0.01
    access_log_share: float = 0.01

    def __post_init__(self) -> None:
        for name in ("flagged_share", "access_log_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be above 0 and at most 1, not {getattr(self, name):g}")


def parts(curve: Curve, traffic: Traffic, limits: Limits) -> list[Part]:
    """All of them, the first to give in first."""
    found = [*_keeping(traffic, limits), *_carrying(curve, traffic, limits), _registry(traffic)]
    return sorted(found, key=lambda part: part.full_at)


def _keeping(traffic: Traffic, limits: Limits) -> list[Part]:
    """What the quarantine needs."""
    flagged, replicas = traffic.flagged_share, 1 / traffic.images_per_replica
    room = Settings.model_fields["quarantine_max_items"].default
    writes = limits.writes_per_replica_per_second
    return [
        Part(
            name="people who review",
            full_at=limits.reviews_per_second / flagged,
            unit=f"{limits.reviews_per_second:g} images a second",
            remedy="show them a sample; flagged images beyond it without their bytes (quarantine = metadata)",
        ),
        Part(
            name="quarantine's room",
            full_at=room / SECONDS_PER_HOUR / flagged,
            unit=f"{room:,} items, to last an hour",
            remedy="raise quarantine_max_items and quarantine_max_bytes, or keep a sample",
        ),
        Part(
            name="quarantine's rows",
            full_at=limits.database_rows_per_second / flagged,
            unit=f"{limits.database_rows_per_second:,.0f} rows a second",
            remedy="a database for each cell of replicas, read together by who reviews",
        ),
        Part(
            name="quarantine's connections",
            full_at=limits.database_connections / (replicas * limits.connections_per_replica),
            unit=f"{limits.database_connections:,.0f} connections",
            remedy="PgBouncer before PostgreSQL",
        ),
        Part(
            name="quarantine's files",
            full_at=limits.store_writes_per_second / flagged,
            unit=f"{limits.store_writes_per_second:,.0f} writes a second and prefix",
            remedy="a prefix or a bucket for each cell of replicas",
        ),
        Part(  # more replicas share it out, so it is too much from the first image on, or never
            name="a replica's writing thread",
            full_at=math.inf if flagged * traffic.images_per_replica <= writes else 0.0,
            unit=f"{writes:,.0f} images a second and replica",
            remedy="what is too much is dropped and counted; keep metadata only",
        ),
    ]


def _carrying(curve: Curve, traffic: Traffic, limits: Limits) -> list[Part]:
    """What every request passes, and what watches it."""
    requests, replicas = 1 / traffic.images_per_request, 1 / traffic.images_per_replica
    return [
        Part(
            name="metrics",
            full_at=limits.prometheus_series / (replicas * curve.series),
            unit=f"{limits.prometheus_series:,.0f} series, {curve.series} a replica",
            remedy="a Prometheus for each cell, recording rules above; drop lgm_class_images_total",
        ),
        Part(
            name="balancer's requests",
            full_at=limits.balancer_requests_per_second / requests,
            unit=f"{limits.balancer_requests_per_second:,.0f} requests a second",
            remedy="several balancers behind DNS or anycast; more images a request",
        ),
        Part(
            name="balancer's network",
            full_at=limits.balancer_bytes_per_second / curve.request_bytes,
            unit=f"{limits.balancer_bytes_per_second:,.0f} bytes a second",
            remedy="several balancers; answers that go past them",
        ),
        Part(
            name="shared rate limits",
            full_at=limits.redis_requests_per_second / requests,
            unit=f"{limits.redis_requests_per_second:,.0f} requests a second",
            remedy="limits at the balancer, or Redis sharded by key",
        ),
        Part(
            name="cluster",
            full_at=limits.cluster_pods / replicas,
            unit=f"{limits.cluster_pods:,.0f} pods",
            remedy="several clusters, each a cell of its own; larger replicas",
        ),
        Part(
            name="log",
            full_at=limits.log_lines_per_second / (requests * traffic.access_log_share),
            unit=f"{limits.log_lines_per_second:,.0f} lines a second",
            remedy="a smaller access_log_share; failed requests keep their lines",
        ),
    ]


def _registry(traffic: Traffic) -> Part:
    return Part(
        name="registry of versions",
        full_at=traffic.images_per_replica,
        unit="one replica",
        remedy="each activates for itself: roll versions by image, setting or storageUri",
    )


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
