import pytest

from service.dashboard import words


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (None, "–"),
        (0, "0\u00a0%"),
        (0.0005, "0.05\u00a0%"),
        (0.01, "1\u00a0%"),
        (0.0123, "1.2\u00a0%"),
        (0.55, "55\u00a0%"),
        (1, "100\u00a0%"),
    ],
)
def test_percent(share, told):
    assert words.percent(share) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (-1.66, "−1.66\u00a0nats"),
        (0.0412, "+0.0412\u00a0nats"),
        (-0.00312, "−0.0031\u00a0nats"),
        (-0.00004, "0\u00a0nats"),
        (0, "0\u00a0nats"),
        (2, "+2.00\u00a0nats"),
        (-62.94, "−62.9\u00a0nats"),
        (1234.5, "+1234\u00a0nats"),
    ],
)
def test_nats_that_something_moved_by(value, told):
    assert words.moved_nats(value) == told


@pytest.mark.parametrize(
    ("value", "told"), [(None, "–"), (-62.94, "−62.9\u00a0nats"), (-0.04, "0.0\u00a0nats"), (2, "2.0\u00a0nats")]
)
def test_nats(value, told):
    assert words.nats(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "less than a second"), (1, "1 second"), (90, "2 minutes"), (3600, "1 hour"), (200_000, "2 days")],
)
def test_duration(seconds, told):
    assert words.duration(seconds) == told


@pytest.mark.parametrize(("value", "told"), [(950, "950"), (1500, "1.5k"), (2e6, "2M"), (-3, "−3"), (0.25, "0.25")])
def test_an_axis_is_short(value, told):
    assert words.short(value) == told


@pytest.mark.parametrize(
    ("num_bytes", "told"), [(12, "12 bytes"), (4096, "4 KiB"), (16 * 2**20, "16 MiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_size(num_bytes, told):
    assert words.size(num_bytes) == told


@pytest.mark.parametrize(("seconds", "told"), [(None, "–"), (0.0021, "2.1 ms"), (0.25, "250 ms"), (1.5, "1.5 s")])
def test_latency(seconds, told):
    assert words.milliseconds(seconds) == told
