import numpy as np
import pytest

from service.monitoring import traffic as columns
from service.monitoring.traffic import LATENCY_BOUNDS, NUM_BUCKETS, Traffic, latency_quantiles, status_class
from tests.service.monitoring.simulated import Clock, Source


def test_requests_and_images_lie_in_the_bucket_of_their_time():
    clock = Clock()
    traffic = Traffic(clock=clock)
    traffic.request_answered("/v1/predict", 200, 0.01)
    traffic.request_answered("/metrics", 200, 0.01)
    traffic.batch_started(8, 5)
    traffic.batch_started(3, 0)
    batch = Source.calibrated([100]).batch(np.zeros(8, np.int64))
    traffic.batch_judged(batch)
    clock.seconds += 25
    traffic.request_answered("/v2/models/{name}/infer", 503, 0.001)
    traffic.request_answered("grpc/ModelInfer", "INTERNAL", 0.2)
    current, buckets = traffic.buckets()
    assert current == 122
    assert buckets[:, columns.STATUSES].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert buckets[:, columns.LATENCIES].sum(1).tolist() == [1, 0, 1]  # a refusal has none
    assert buckets[:, columns.IMAGES].tolist() == [8, 0, 0]
    assert buckets[:, columns.FLAGGED].tolist() == [batch.flagged.sum(), 0, 0]
    assert buckets[:, columns.WAITING].tolist() == [13, 0, 0]
    assert buckets[:, columns.BATCHES].tolist() == [2, 0, 0]


def test_an_hour_is_kept_and_no_more():
    clock = Clock()
    traffic = Traffic(clock=clock)
    for _ in range(NUM_BUCKETS + 40):
        traffic.request_answered("/v1/predict", 200, 0.01)
        clock.seconds += 10
    _, buckets = traffic.buckets()
    assert len(buckets) == NUM_BUCKETS
    assert buckets[:, columns.STATUSES].sum() == NUM_BUCKETS - 1  # the last has only begun
    clock.seconds += 1e5
    assert traffic.buckets()[1].sum() == 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, columns.OK),
        ("OK", columns.OK),
        (422, columns.CLIENT_ERROR),
        (499, columns.CLIENT_ERROR),
        ("INVALID_ARGUMENT", columns.CLIENT_ERROR),
        (429, columns.REFUSED),
        (503, columns.REFUSED),
        ("UNAVAILABLE", columns.REFUSED),
        (500, columns.SERVER_ERROR),
        (504, columns.SERVER_ERROR),
        ("INTERNAL", columns.SERVER_ERROR),
    ],
)
def test_statuses_have_their_class(status, expected):
    assert status_class(status) == expected


def test_quantiles_are_within_a_bin_of_those_of_the_latencies():
    seconds = np.random.default_rng(0).lognormal(-4, 1, size=5000)
    counts = np.bincount(np.searchsorted(LATENCY_BOUNDS, seconds), minlength=len(LATENCY_BOUNDS) + 1)
    levels = (0.5, 0.95, 0.99)
    found = latency_quantiles(np.stack([counts, np.zeros_like(counts)]), levels)
    for level, (value, nothing) in zip(levels, found, strict=True):
        assert value == pytest.approx(np.quantile(seconds, level), rel=0.12)
        assert nothing is None
