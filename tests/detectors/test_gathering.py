"""Clean rows in memory: nothing lost, nothing twice, and chance from the generator alone."""

import pytest
import torch
from torch import Tensor

from detectors.base import Evidence
from detectors.gathering import CHUNK, CleanRows, draw, draw_per_class, gather_rows, nearest
from model.errors import CalibrationError
from tests.detectors.synthetic import NUM_CLASSES, clusters, generator, joined, make_evidence, make_network, normal


@pytest.fixture
def rows() -> CleanRows:
    return gather_rows(clusters(make_network(), [40, 25, 5]))


def test_gathered_rows_are_the_batches_in_order() -> None:
    batches = clusters(make_network(), [40, 25, 5])
    rows, (everything, labels) = gather_rows(batches), joined(batches)
    assert torch.equal(rows.labels, labels)
    assert torch.equal(rows.layers[0], everything.taps[0])
    assert torch.equal(rows.features, everything.features)
    assert rows.num_classes == NUM_CLASSES


def test_gathered_rows_hold_no_graph() -> None:
    features = normal(4, 6).requires_grad_()
    rows = gather_rows([(make_evidence(make_network(), features), torch.zeros(4, dtype=torch.long))])
    assert not rows.features.requires_grad


@pytest.mark.parametrize("count", [None, 0])
def test_nothing_to_fit_on_is_refused(count: int | None) -> None:
    empty: list[tuple[Evidence, Tensor]] = []
    if count is not None:
        empty = [(make_evidence(make_network(), torch.zeros(0, 6)), torch.zeros(0, dtype=torch.long))]
    with pytest.raises(CalibrationError, match="no clean image"):
        gather_rows(empty)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_activation_that_is_not_finite_is_refused(value: float) -> None:
    evidence = make_evidence(make_network(), normal(3, 6), torch.tensor([[0.0], [value], [0.0]]))
    with pytest.raises(CalibrationError, match="not finite"):
        gather_rows([(evidence, torch.zeros(3, dtype=torch.long))])


def identities(rows: CleanRows) -> list[float]:
    return sorted(rows.features[:, 0].tolist())


def test_a_draw_is_without_replacement_and_the_same_for_every_layer(rows: CleanRows) -> None:
    drawn = draw(rows, 20, generator())
    assert len(set(identities(drawn))) == 20
    where = (drawn.features[:, None] == rows.features).all(2).nonzero()[:, 1]
    assert torch.equal(drawn.layers[0], rows.layers[0][where])
    assert torch.equal(drawn.labels, rows.labels[where])


def test_a_draw_of_more_than_there_are_is_all_of_them(rows: CleanRows) -> None:
    assert identities(draw(rows, 1_000, generator())) == identities(rows)


def test_a_draw_depends_on_the_generator_alone(rows: CleanRows) -> None:
    assert torch.equal(draw(rows, 20, generator(3)).features, draw(rows, 20, generator(3)).features)
    assert identities(draw(rows, 20, generator(3))) != identities(draw(rows, 20, generator(4)))


def test_each_class_gives_its_share(rows: CleanRows) -> None:
    drawn = draw_per_class(rows, 10, generator())
    assert torch.bincount(drawn.labels).tolist() == [10, 10, 5]
    assert len(set(identities(drawn))) == 25
    assert bool((drawn.labels.diff() >= 0).all())
    assert identities(drawn) != identities(draw_per_class(rows, 10, generator(1)))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_nearest_come_first_wherever_the_rows_lie(offset: float) -> None:
    queries, reference = normal(CHUNK + 3, 5, seed=8) + offset, normal(200, 5, seed=9) + offset
    expected = (queries.double()[:, None] - reference.double()).norm(dim=2).argsort(1)[:, :7]
    assert (nearest(queries, reference, 7) == expected).double().mean() > 0.999
