"""From a curve to replicas, waits and costs; and what gives in first."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.errors import ConfigurationError
from service.capacity.curve import Curve, fit, read_curve
from service.capacity.parts import Limits, Traffic, parts, read_limits
from service.capacity.planning import Demand, images_per_replica, most_images_per_second, plan, replica_of
from service.capacity.simulation import Replica
from service.cli import app

DEPLOY = Path(__file__).parents[3] / "deploy"
CURVE = DEPLOY / "capacity" / "curve.json"
TRAFFIC = Traffic(images_per_request=1, images_per_replica=1_000)


@pytest.fixture(scope="module")
def curve() -> Curve:
    return read_curve(CURVE)


def fixed(cores: int = 1) -> Replica:
    """A millisecond of worker an image and nothing else: an M/D/1 queue for each core."""
    return Replica(
        request_seconds=lambda _: 0.0,
        batch_seconds=lambda count: 0.001 * count,
        cores=cores,
        workers=cores,
        max_batch_size=1,
        max_wait_seconds=0.0,
        queue_capacity=10**6,
    )


def test_costs_are_found_again_and_are_never_negative():
    counts = [1.0, 4.0, 64.0]
    fixed, each = fit([[1.0] * 3, counts], [0.002 + 0.0005 * count for count in counts])
    assert (fixed, each) == (pytest.approx(0.002), pytest.approx(0.0005))
    assert fit([[1.0, 1.0], [1.0, 64.0]], [0.001, 0.1])[0] == 0.0
    assert fit([[1.0, 1.0], [1.0, 64.0]], [0.1, 0.001])[1] == 0.0
    with pytest.raises(ConfigurationError, match="loads of other sizes are needed"):
        fit([[1.0, 1.0], [8.0, 8.0]], [0.01, 0.02])


def test_the_measured_curve_is_described_by_its_costs(curve):
    loop, batch = curve.loop_cost(), curve.batch_cost()
    for point in curve.points:
        batches = point.images_per_request / point.images_per_batch
        told = loop(point.images_per_request) + loop.batch * batches
        assert batch(point.images_per_batch) == pytest.approx(point.worker_seconds_per_batch, rel=0.3)
        assert told == pytest.approx(point.loop_seconds_per_request, rel=0.3)


def test_the_simulated_replica_can_what_the_measured_one_could(curve):
    """The closed loops' throughput, which no cost was fitted to; generators and others took some of the processor."""
    replica = replica_of(curve)
    for size in (1, 64):
        measured = max(point.images_per_second for point in curve.points if point.images_per_request == size)
        assert measured <= most_images_per_second(replica, size) <= 1.6 * measured


def test_a_replica_s_limit_is_what_m_d_1_allows():
    """99 % wait less than 4 services up to a load of about 0.6 (Erlang's waiting time of M/D/1, solved here)."""
    found = images_per_replica(fixed(), Demand(most_wait_seconds=0.004, most_busy=1, num_requests=4_000)) / 1000
    assert found == pytest.approx(load_of_m_d_1(0.99, 4.0), abs=0.04)


def load_of_m_d_1(share: float, waits: float) -> float:
    """The load at which so large a share waits at most so many services: Erlang's series, by bisection."""
    low, high = 0.01, 0.99
    for _ in range(40):
        load = (low + high) / 2
        low, high = (load, high) if waited_at_most(load, waits) >= share else (low, load)
    return low


def waited_at_most(load: float, waits: float) -> float:
    """P(W <= t) = (1 - load) * sum over k <= t of (load (k - t))^k / k! * exp(-load (k - t)); service is 1."""
    terms = [
        (load * (k - waits)) ** k / math.factorial(k) * math.exp(-load * (k - waits)) for k in range(int(waits) + 1)
    ]
    return (1 - load) * sum(terms)


def test_more_replicas_for_more_images_at_the_same_cost():
    demand = Demand(price_per_hour=3.6)
    small, large = (plan(fixed(), demand, rate=rate, per_replica=500) for rate in (1_000, 10_000_000))
    assert (small.replicas, large.replicas) == (2, 20_000)
    assert small.cost_per_million == pytest.approx(2.0)  # 2 x 3.6 an hour, 3.6 million images in it
    assert large.cost_per_million == pytest.approx(2.0)
    assert large.busy_share == pytest.approx(0.5, rel=0.05)
    assert (small.p50_wait, small.p99_wait) == (large.p50_wait, large.p99_wait)


def test_waiting_shorter_takes_more_replicas(curve):
    replica = replica_of(curve, cores=2, workers=2)
    asked = [Demand(most_wait_seconds=wait, most_busy=1, num_requests=1_000) for wait in (1, 0.004)]
    patient, hasty = (images_per_replica(replica, demand) for demand in asked)
    assert hasty < patient
    assert patient == 0.8 * most_images_per_second(replica, 1)


def test_workers_are_no_busier_than_autoscaling_leaves_them(curve):
    """An M/D/1 queue is busy for as much as its load; the measured replica's plan stays below what is asked."""
    assert images_per_replica(fixed(), Demand(most_busy=0.5, num_requests=2_000)) / 1000 == pytest.approx(
        0.5, abs=0.03
    )
    replica, demand = replica_of(curve, cores=2, workers=2), Demand(num_requests=1_000)
    per_replica = images_per_replica(replica, demand)
    assert plan(replica, demand, rate=1e6, per_replica=per_replica).busy_share <= 0.6
    scaled = (DEPLOY / "kubernetes" / "components" / "scaling" / "scaled-object.yaml").read_text()
    assert f'threshold: "{demand.most_busy}"' in scaled


@pytest.mark.parametrize("wait", [0.003, 0.01])
def test_a_plan_keeps_the_wait_that_it_promises(curve, wait):
    """Waits rise with the load but for the noise of a simulation, so a plan is looked at itself."""
    replica = replica_of(curve, cores=2, workers=2)
    demand = Demand(most_wait_seconds=wait, most_busy=1, num_requests=1_000)
    per_replica = images_per_replica(replica, demand)
    for rate, taken in ((1e6, per_replica), (1e7, 1.5 * per_replica)):
        assert plan(replica, demand, rate=rate, per_replica=taken).p99_wait <= wait


def test_what_no_replica_can_is_said():
    with pytest.raises(ConfigurationError, match="requests of 8 images are refused, or wait"):
        images_per_replica(replace(fixed(), queue_capacity=4), Demand(images_per_request=8, num_requests=1_000))
    with pytest.raises(ConfigurationError, match="rate must be more than 0"):
        plan(fixed(), Demand(), rate=0, per_replica=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images_per_request": 0}, "from 1 to 1024, not 0"),
        ({"most_wait_seconds": 61}, "at most 60 s, not 61"),
        ({"most_load": 0.99}, "at most 0.95, not 0.99"),
        ({"most_busy": 0}, "busy share must be more than 0 and at most 1, not 0"),
        ({"price_per_hour": -1}, "at least 0, not -1"),
        ({"price_per_hour": math.nan}, "at least 0, not nan"),
        ({"num_requests": 10}, "from 1000 to 10000000, not 10"),
    ],
)
def test_what_cannot_be_asked_names_the_limit(given, said):
    with pytest.raises(ConfigurationError, match=said):
        Demand(**given)


def test_each_part_is_full_where_its_limit_is(curve):
    found = {part.name: part.full_at for part in parts(curve, TRAFFIC, Limits())}
    assert found["registry of versions"] == 1_000
    assert found["people who review"] == 2_500  # 25 a second at 1 % flagged
    assert found["quarantine's room"] == pytest.approx(100_000 / 3600 / 0.01)
    assert found["quarantine's connections"] == 50_000  # 50 replicas of two connections
    assert found["metrics"] == pytest.approx(2_000_000 / curve.series * 1_000)
    assert found["cluster"] == 150_000_000
    assert found["a replica's writing thread"] == math.inf
    assert list(found.values()) == sorted(found.values())


def test_a_writing_thread_that_cannot_keep_up_gives_in_at_once(curve):
    flood = Traffic(images_per_request=1, images_per_replica=2_000, flagged_share=1.0)
    first, *_ = parts(curve, flood, Limits())
    assert (first.name, first.full_at) == ("a replica's writing thread", 0.0)


def test_twice_the_flagged_share_halves_what_is_kept_and_nothing_else(curve):
    once, twice = (
        {part.name: part.full_at for part in parts(curve, replace(TRAFFIC, flagged_share=share), Limits())}
        for share in (0.01, 0.02)
    )
    halved = {name for name in once if twice[name] == pytest.approx(once[name] / 2) and once[name] < math.inf}
    assert halved == {"people who review", "quarantine's room", "quarantine's rows", "quarantine's files"}


def test_a_second_image_of_a_request_costs_a_second_question_and_the_log_is_as_full_as_it_is_set(curve):
    one, eight, sampled = (
        {part.name: part.full_at for part in parts(curve, replace(TRAFFIC, **changed), Limits())}
        for changed in ({}, {"images_per_request": 8}, {"access_log_share": 0.01})
    )
    assert eight["shared rate limits"] == one["shared rate limits"] * 4
    assert one["log"] == Limits().log_lines_per_second == sampled["log"] / 100


def test_limits_come_from_a_file_and_wrong_ones_are_named(tmp_path):
    path = tmp_path / "limits.toml"
    path.write_text("reviews_per_second = 2\n")
    assert read_limits(path) == replace(Limits(), reviews_per_second=2)
    for text, said in {
        "reviews_per_second = 0": "reviews_per_second must be a number above 0 and at most 1e.18, not 0",
        'cluster_pods = "many"': "cluster_pods must be a number above 0 and at most 1e.18, not 'many'",
        "database_rows_per_second = 1" + 400 * "0": "database_rows_per_second must be .* not 1000",
        "store_writes_per_second = inf": "store_writes_per_second must be .* not inf",
        "pods = 1": "pods is unknown; there are balancer_bytes_per_second",
        "pods": "is not TOML",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            read_limits(path)
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read"):
        read_limits(tmp_path / "missing.toml")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["capacity", *arguments])


def test_the_command_tells_replicas_waits_costs_and_what_gives_in():
    told = invoke(
        "--curve",
        str(CURVE),
        "--rate",
        "1e6",
        "--price",
        "0.5",
        "--cores",
        "2",
        "--workers",
        "2",
        "--requests",
        "1000",
    )
    assert told.exit_code == 0, told.output
    (row,) = [line for line in told.output.splitlines() if "1,000,000" in line and "%" in line]
    _, _, replicas, p50, p99, _, _, cost, _ = [cell.strip() for cell in row.split("│")]
    assert float(cost) == pytest.approx(0.5 * int(replicas.replace(",", "")) / 3600, abs=1e-4)
    assert float(p50) <= float(p99) <= 50
    assert "people who review" in told.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cores": 0}, "cores: Input should be greater than or equal to 1"),
        ({"points": []}, "points"),
        ({"surplus": 1}, "surplus: Extra inputs are not permitted"),
    ],
)
def test_a_broken_curve_is_refused_with_file_and_field(change, said, tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({**json.loads(CURVE.read_text()), **change}))
    told = invoke("--curve", str(path))
    assert told.exit_code == 2
    assert f"curve: {path}: {said}" in told.stderr
    assert invoke("--curve", str(tmp_path / "none.json")).exit_code == 2


def test_the_same_seed_gives_the_same_plan():
    demand = Demand(num_requests=1_000)
    assert plan(fixed(), demand, rate=700, per_replica=800) == plan(fixed(), demand, rate=700, per_replica=800)
    other = plan(fixed(), replace(demand, seed=1), rate=700, per_replica=800)
    assert not np.isclose(other.p99_wait, plan(fixed(), demand, rate=700, per_replica=800).p99_wait, rtol=1e-6)
