"""The pairs protocol: thresholds against brute force, pairs as LFW has them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.comparison.settings import ComparisonError
from detectors.comparison.verification import _rate, best_threshold, cosine_similarity, draw_pairs, read_pairs, verify

LABELS = np.repeat(np.arange(4), 10)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.2, 0.5, 1.0]), st.booleans()), min_size=1, max_size=30))
def test_no_other_threshold_errs_less(pairs: list[tuple[float, bool]]) -> None:
    similarity, same = (np.array(column) for column in zip(*pairs, strict=True))
    errors = {value: np.sum((similarity >= value) != same) for value in similarity}
    assert errors[best_threshold(similarity, same)] == min(errors.values())


def test_pairs_are_even_and_of_two_images() -> None:
    pairs = draw_pairs(LABELS, 400, seed=0)
    assert np.array_equal(LABELS[pairs.first] == LABELS[pairs.second], pairs.same)
    assert not np.any(pairs.first == pairs.second)
    for fold in range(10):
        held = pairs.fold == fold
        assert held.sum() == 40
        assert pairs.same[held].sum() == 20


def test_the_seed_draws_the_pairs() -> None:
    first, again, other = (draw_pairs(LABELS, 100, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.first, again.first)
    assert not np.array_equal(first.first, other.first)


@pytest.mark.parametrize("labels", [np.zeros(10, dtype=int), np.array([0, 0, 0, 1])])
def test_labels_without_pairs_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ComparisonError, match="at least two classes of two images"):
        draw_pairs(labels, 20, seed=0)


def test_features_that_tell_classes_apart_verify_all() -> None:
    pairs = draw_pairs(LABELS, 400, seed=0)
    features = np.eye(4)[LABELS] * np.linspace(0.1, 9, len(LABELS))[:, None]
    found = verify(cosine_similarity(features, pairs), pairs)
    assert (found.accuracy, found.standard_error, found.tpr_at_fpr_1, found.tpr_at_fpr_01) == (1, 0, 1, 1)


@pytest.mark.parametrize(("count", "rate", "most"), [(100, 0.01, 1), (3000, 0.001, 3), (50, 0.01, 0)])
def test_the_threshold_is_the_least_that_the_stated_share_exceeds(count: int, rate: float, most: int) -> None:
    unlike = np.arange(count, dtype=float)
    threshold = unlike[-1 - most]
    assert int((unlike > threshold).sum()) == most
    assert _rate(np.array([threshold + 0.5]), unlike, rate) == 1
    assert _rate(np.array([threshold]), unlike, rate) == 0


def test_features_that_tell_nothing_are_at_chance() -> None:
    pairs = draw_pairs(LABELS, 4000, seed=0)
    found = verify(np.random.default_rng(0).normal(size=4000), pairs)
    assert found.accuracy == pytest.approx(0.5, abs=0.03)
    assert found.tpr_at_fpr_1 == pytest.approx(0.01, abs=0.01)


def test_the_threshold_never_sees_its_fold() -> None:
    """One fold's similarities lie elsewhere, so that the others' threshold calls every pair of it alike."""
    pairs = draw_pairs(LABELS, 200, seed=0)
    similarity = pairs.same.astype(float) + 100 * (pairs.fold == 3)
    assert verify(similarity, pairs).accuracy == pytest.approx(0.95)


def test_lfws_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nBob\t3\t4\nBob\t4\tAnn\t2\n")
    images, pairs = read_pairs(tmp_path / "pairs.txt", Path("lfw"))
    assert images == [Path("lfw") / name for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob/Bob_0003.jpg")] + [
        Path("lfw/Bob/Bob_0004.jpg")
    ]
    assert pairs.first.tolist() == [0, 0, 2, 3]
    assert pairs.second.tolist() == [1, 2, 3, 1]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: it must hold the number of folds"),
        (b"x y\n", "line 1: it must hold the number of folds"),
        (b"500\n", "line 1: one fold leaves none for the threshold"),
        (b"1 1\nAnn 1 2\nAnn 1 Bob 1\n", "line 1: one fold leaves none"),
        (b"2 1\nAnn 1 2\nAnn one Bob 2\n", "line 3: neither 'name i j' nor"),
        (b"2 1\nAnn 1 2\nAnn 1 Bob 1\n", "promises 4 pairs and has 2"),
        (b"2 1\nAnn 1 2\nAnn 1 Bob 1\nAnn 1 2\nBob 3 4\n", "fold 2 must hold 1 pairs of each kind, it has 2 of one"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_other_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(content)
    with pytest.raises(ComparisonError, match=said):
        read_pairs(tmp_path / "pairs.txt", tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"none\.txt cannot be read"):
        read_pairs(tmp_path / "none.txt", tmp_path)
