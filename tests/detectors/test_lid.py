"""Local intrinsic dimensionality: hand values, known dimensions, and no row its own neighbour."""

import math

import pytest
import torch
from torch import Tensor

from detectors.lid import LayerDimensionality, LIDDetector, dimensionality
from model.errors import CalibrationError
from tests.detectors.synthetic import clusters, generator, joined, make_evidence, make_network, normal

NETWORK = make_network()


def fit(counts: list[int], seed: int = 0) -> LIDDetector:
    return LIDDetector.fit(clusters(NETWORK, counts), generator=generator(seed))


def test_hand_values() -> None:
    distances = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0 * math.e]])
    assert torch.allclose(dimensionality(distances), torch.tensor([1 / math.log(2), 1.5]))


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_rows_of_a_flat_have_its_dimension(dimension: int) -> None:
    """A uniform cube of that dimension, turned into a space of twelve, asked near its middle."""
    turn = torch.linalg.qr(normal(12, 12)).Q[:dimension]
    cube = torch.rand(8_000, dimension, generator=generator()) @ turn
    middle = (0.5 + 0.2 * (torch.rand(300, dimension, generator=generator(1)) - 0.5)) @ turn
    assert LayerDimensionality(cube)(middle, 50).median() == pytest.approx(dimension, rel=0.1)


def test_a_row_of_the_reference_is_not_its_own_neighbour() -> None:
    reference = normal(60, 5)
    alone = [
        LayerDimensionality(torch.cat([reference[:at], reference[at + 1 :]]))(reference[at : at + 1], 8)
        for at in range(60)
    ]
    assert torch.allclose(LayerDimensionality(reference)(reference, 8), torch.cat(alone), rtol=1e-4)
    rounded = reference * (1 + 1e-6)  # as the same image in another batch
    assert torch.allclose(LayerDimensionality(reference)(rounded, 8), torch.cat(alone), rtol=1e-3)


def test_scale_and_place_of_a_layer_do_not_count() -> None:
    reference, outputs = normal(60, 5), normal(10, 5, seed=1)
    scores = LayerDimensionality(reference)(outputs, 8)
    assert torch.allclose(LayerDimensionality(50 * reference - 20)(50 * outputs - 20, 8), scores, rtol=1e-3)


def test_the_score_is_the_mean_over_layers() -> None:
    detector, (evidence, _) = fit([40, 40, 40]), joined(clusters(NETWORK, [9, 9, 9], seed=9))
    on_tap, on_features = detector.layers
    parts = on_tap(evidence.taps[0], 20) + on_features(evidence.features, 20)
    assert torch.allclose(detector(evidence), parts / 2)


@pytest.mark.parametrize(
    ("counts", "num_references", "num_neighbours"),
    [([1, 1, 1], 3, 2), ([20, 10, 10], 40, 8), ([40, 40, 40], 120, 20), ([400, 400, 400], 1_000, 20)],
)
def test_neighbours_are_a_fifth_of_the_reference_and_twenty_at_most(
    counts: list[int], num_references: int, num_neighbours: int
) -> None:
    detector = fit(counts)
    assert int(detector.get_buffer("num_neighbours")) == num_neighbours
    assert [len(layer.get_buffer("reference")) for layer in detector.layers] == [num_references] * 2


def test_references_are_of_the_same_images_in_every_layer() -> None:
    evidence, labels = joined(clusters(NETWORK, [400, 400, 400]))
    twice = make_evidence(NETWORK, evidence.features, 2 * evidence.features)
    tap, features = LIDDetector.fit([(twice, labels)], generator=generator()).layers
    assert torch.equal(tap.get_buffer("reference"), 2 * features.get_buffer("reference"))


def test_references_are_drawn_by_the_generator() -> None:
    first, again, other = (fit([400, 400, 400], seed).layers[0].get_buffer("reference") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort(0).values, other.sort(0).values)


def test_two_images_are_too_few() -> None:
    with pytest.raises(CalibrationError, match="at least 3"):
        fit([1, 1, 0])


@pytest.mark.parametrize("reference", [torch.zeros(30, 4), normal(1, 4).repeat(30, 1), normal(3, 4).repeat(10, 1)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_rows_that_coincide_leave_finite_scores_and_gradients(reference: Tensor, scale: float) -> None:
    outputs = torch.cat([reference[:1], scale * normal(2, 4, seed=3)]).requires_grad_()
    scores = LayerDimensionality(reference)(outputs, 8)
    scores.sum().backward()
    assert bool((scores.isfinite() & (scores > 0)).all())
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
