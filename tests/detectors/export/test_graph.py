"""The graph by itself: p-values by comparison, detectors one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detectors import Screener
from detectors.calibration import ConformalCalibration
from detectors.export.graph import MAX_BATCH_SIZE, WRITTEN_OUT, ScoresGraph, ScreeningGraph, WrittenOut, capture
from detectors.known import KNOWN_DETECTORS
from model.errors import ExportError

numbers = st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 1.0, math.inf, math.nan])


@given(
    clean=st.lists(st.tuples(st.sampled_from([-1.5, 0.0, 0.5, 1.0]), st.integers(0, 2)), max_size=12),
    asked=st.lists(st.tuples(numbers, st.integers(0, 2)), min_size=1, max_size=6),
)
def test_comparing_gives_the_p_values_of_the_binary_search(
    clean: list[tuple[float, int]], asked: list[tuple[float, int]]
) -> None:
    def columns(rows: list[tuple[float, int]]) -> tuple[Tensor, Tensor]:
        scores, classes = zip(*rows, strict=True) if rows else ((), ())
        return torch.tensor(scores, dtype=torch.float32), torch.tensor(classes, dtype=torch.int64)

    calibration = ConformalCalibration.fit(*columns(clean), 3)
    with WrittenOut():
        found = calibration(*columns(asked))
    assert torch.equal(found, calibration(*columns(asked)))


@pytest.fixture(scope="module")
def scores(whole_screener: Screener, images: Tensor) -> dict[str, Tensor]:
    """By the captured graph, over all images at once."""
    program = capture(ScoresGraph(whole_screener, tuple(KNOWN_DETECTORS)))
    with torch.inference_mode():
        found: dict[str, Tensor] = program.module()(images)
    return found


@pytest.mark.parametrize("name", KNOWN_DETECTORS)
def test_a_captured_detector_gives_its_own_scores(
    name: str, scores: dict[str, Tensor], whole_screener: Screener, images: Tensor
) -> None:
    expected = whole_screener.screen(images).evidence[name].score
    assert expected.std() > 0
    torch.testing.assert_close(scores[name], expected, rtol=1e-4, atol=1e-4)


def test_it_takes_any_number_of_images_up_to_its_limit(digits_screener: Screener) -> None:
    module = capture(ScreeningGraph(digits_screener)).module()
    for count in (1, 3, MAX_BATCH_SIZE):
        assert module(torch.zeros(count, 1, 8, 8))["p_value"].shape == (count,)
    with pytest.raises(AssertionError, match=str(MAX_BATCH_SIZE)):
        module(torch.zeros(MAX_BATCH_SIZE + 1, 1, 8, 8))


def test_the_screener_that_it_is_made_of_stays_as_it_was(whole_screener: Screener, images: Tensor) -> None:
    before = {name: values.clone() for name, values in whole_screener.state_dict().items()}
    ScreeningGraph(whole_screener)(images)
    after = whole_screener.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(values, after[name]) for name, values in before.items())


@pytest.mark.parametrize("level", [-1e4, -500.0, 0.0, 500.0, -math.inf])
@pytest.mark.parametrize("num_impossible", [0, 1, 3])
def test_logsumexp_written_out(level: float, num_impossible: int) -> None:
    values = level + torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    values[:, :num_impossible] = -math.inf
    written = WRITTEN_OUT[torch.logsumexp]
    assert torch.allclose(written(values, 1), torch.logsumexp(values, 1))
    assert torch.allclose(written(values, 1, keepdim=True), values.logsumexp(1, keepdim=True))


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_distances_written_out(mode: str) -> None:
    one, other = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)), torch.rand(7, 3)
    found = WRITTEN_OUT[torch.cdist](one, other, compute_mode=mode)
    torch.testing.assert_close(found, torch.cdist(one, other), rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportError, match=r"p = 1\.0 has no exported form"):
        WRITTEN_OUT[torch.cdist](one, other, 1.0)
