import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from detectors.evaluation import metrics
from detectors.evaluation.pairs import Side, correlation, correlations, paired_interval
from detectors.evaluation.parts import FOLDER, Part, load_part, save_part
from detectors.evaluation.rows import Measured, Row, make_rows
from detectors.evaluation.settings import Task

TASK = Task(group="attack", name="pgd", knowledge="full", norm="linf", seed=3, eps=0.1, steps=5, restarts=1)
FIGURES = {
    "attacked_accuracy",
    "auroc",
    "tpr_at_fpr_5",
    "tpr_at_fpr_1",
    "sr_at_5",
    "robust_accuracy_with_rejection",
    "realised_false_alarm_rate",
}


def wilson(hits: int, count: int) -> metrics.Interval:
    return metrics.wilson_interval(hits, count, level=0.95)


def fourfold(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two runs less their shares."""
    counts = [both, first, second, neither]
    mine, theirs = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    return mine - mine.mean(), theirs - theirs.mean()


def test_the_interval_is_newcombes_published_one() -> None:
    """Cavo et al. 2012 in Fagerland, Lydersen and Laake 2017, chapter 8: -0.0621 (-0.1186 to -0.0046)."""
    phi = correlation(*fourfold(59, 16, 6, 80), continuity=0.5)
    found = paired_interval(75 / 161, wilson(75, 161), 65 / 161, wilson(65, 161), correlation=phi)
    assert found == pytest.approx((-0.1186, -0.0046), abs=5e-5)


@pytest.mark.parametrize("cells", [(36, 12, 2, 0), (4, 20, 20, 6), (25, 25, 25, 25), (26, 25, 25, 25), (0, 9, 9, 2)])
def test_the_correlation_is_phi_with_a_corrected_numerator(cells: tuple[int, int, int, int]) -> None:
    """phi = (ad - bc - n / 2) / sqrt of the four margins' product, the n / 2 where ad exceeds bc and down to 0."""
    both, first, second, neither = cells
    numerator, count = both * neither - first * second, sum(cells)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    corrected = max(0, numerator - count / 2) if numerator > 0 else numerator
    assert correlation(*fourfold(*cells), continuity=0.5) == pytest.approx(corrected / margins**0.5)
    pearson = np.corrcoef(*fourfold(*cells))[0, 1]
    assert correlation(*fourfold(*cells), continuity=0.0) == pytest.approx(pearson)


def test_without_correlation_it_is_the_interval_of_independent_runs() -> None:
    told = (0.6, wilson(48, 80), 0.8, wilson(56, 70))
    assert paired_interval(*told, correlation=0.0) == pytest.approx(metrics.difference_interval(*told))
    low, high = paired_interval(*told, correlation=0.5)
    assert paired_interval(*told[2:], *told[:2], correlation=0.5) == pytest.approx((-high, -low))
    widths = [
        np.ptp(paired_interval(*told, correlation=correlated)) for correlated in (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0)
    ]
    assert widths == sorted(widths, reverse=True)


def test_what_does_not_vary_says_nothing_of_the_correlation() -> None:
    assert correlation(np.zeros(9), np.arange(9.0) - 4, continuity=0.5) == 0.0
    assert correlation(np.arange(9.0) - 4, np.arange(9.0) - 4, continuity=0.0) == 1.0


Outcome = tuple[Part, Part]


def draw(generator: np.random.Generator, make_part: Callable[..., Part], common: np.ndarray) -> Outcome:
    """A clean and an attacked part of 150 images that go along with what is common to all runs, and together."""
    clean, attacked, lost = 0.8 * common + 0.6 * generator.normal(size=common.shape)
    attacked = 0.6 * attacked + 0.8 * common[0]

    def part(predictions: np.ndarray, suspicion: np.ndarray) -> Part:
        made = make_part([0] * 150, predictions.tolist(), fused=(1 / (1 + np.exp(suspicion))).tolist())
        return replace(made, scores={"fused": suspicion.astype(np.float32)})

    return part((clean > 1.5).astype(int), 2 * clean - 1), part((lost > -0.6).astype(int), 2 * attacked + 1)


@pytest.fixture
def outcomes(make_part: Callable[..., Part]) -> list[Outcome]:
    """Two runs on the same images."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=(3, 150))
    return [draw(generator, make_part, common) for _ in range(2)]


def write(folder: Path, outcome: Outcome, task: Task = TASK) -> Side:
    (folder / FOLDER).mkdir(parents=True)
    save_part(folder, f"clean-seed{task.seed}", outcome[0])
    save_part(folder, task.key, outcome[1])
    (row,) = make_rows(Measured(task=task, part=outcome[1], clean=outcome[0]), promise=0.1)
    return Side(row=json.loads(json.dumps(row)), folder=folder, promise=0.1)


def select(outcome: Outcome, rows: np.ndarray) -> Outcome:
    clean, part = (
        replace(
            one,
            labels=one.labels[rows],
            predictions=one.predictions[rows],
            scores={name: values[rows] for name, values in one.scores.items()},
            p_values={name: values[rows] for name, values in one.p_values.items()},
        )
        for one in outcome
    )
    return clean, part


def figures(outcome: Outcome) -> Row:
    """Of one run, told plainly."""
    clean, part = outcome
    right, p_value, score = part.predictions == 0, part.p_values["fused"], part.scores["fused"]
    fooled, known = ~right & (clean.predictions == 0), clean.predictions == 0
    scores = np.concatenate([clean.scores["fused"][known], score[fooled]])
    return {
        "attacked_accuracy": right.mean(),
        "auroc": roc_auc_score(np.repeat([0, 1], [known.sum(), fooled.sum()]), scores),
        "tpr_at_fpr_5": (p_value[fooled] <= 0.05).mean(),
        "tpr_at_fpr_1": (p_value[fooled] <= 0.01).mean(),
        "sr_at_5": (~right & (p_value > 0.05)).mean(),
        "robust_accuracy_with_rejection": (right | (p_value <= 0.1)).mean(),
        "realised_false_alarm_rate": (clean.p_values["fused"] <= 0.1).mean(),
    }


def test_figures_of_resampled_images_go_together_as_told(tmp_path: Path, outcomes: list[Outcome]) -> None:
    """The bootstrap over images: correlations of 600 resamples, known to within 0.1 for any of them."""
    sides = [write(tmp_path / str(place), outcome) for place, outcome in enumerate(outcomes)]
    found = correlations(*sides)
    assert set(found) == FIGURES
    generator = np.random.default_rng(1)
    drawn = [
        [figures(select(outcome, rows)) for outcome in outcomes] for rows in generator.integers(150, size=(600, 150))
    ]
    for name in FIGURES:
        mine, theirs = ([pair[place][name] for pair in drawn] for place in (0, 1))
        expected = np.corrcoef(mine, theirs)[0, 1]
        corrected = expected - (0 if name == "auroc" else _continuity(outcomes, name))
        assert found[name] == pytest.approx(max(0, corrected), abs=0.1), name


def _continuity(outcomes: list[Outcome], name: str) -> float:
    """Half a hit over the number of images, in units of both deviations."""
    told = [figures(outcome)[name] for outcome in outcomes]
    asked = [1.0, 1.0]
    if name.startswith("tpr"):
        asked = [float(((part.predictions != 0) & (clean.predictions == 0)).mean()) for clean, part in outcomes]
    spreads = [(share * value * (1 - value)) ** 0.5 for share, value in zip(asked, told, strict=True)]
    return 0.5 / 150 / (spreads[0] * spreads[1])


def test_a_run_goes_together_with_itself(tmp_path: Path, outcomes: list[Outcome]) -> None:
    side = write(tmp_path / "run", outcomes[0])
    found = correlations(side, side)
    assert found["auroc"] == pytest.approx(1)
    assert all(value > 0.8 for value in found.values())


def test_parts_of_another_run_are_passed_over(tmp_path: Path, outcomes: list[Outcome]) -> None:
    """Figure by figure: what they tell as the row does stays."""
    sides = [write(tmp_path / str(place), outcome) for place, outcome in enumerate(outcomes)]
    changed = replace(sides[0], row={**sides[0].row, "auroc": 0.5, "sr_at_5": None})
    assert set(correlations(changed, sides[1])) == FIGURES - {"auroc", "sr_at_5"}
    assert "robust_accuracy_with_rejection" not in correlations(replace(sides[0], promise=0.2), sides[1])


def test_foreign_images_are_not_paired(tmp_path: Path, outcomes: list[Outcome]) -> None:
    """Their parts are there, but nothing says that they are of the same images."""
    task = Task(group="foreign", name="noise", knowledge="none", norm="none", seed=3)
    first, second = (write(tmp_path / str(place), outcome, task) for place, outcome in enumerate(outcomes))
    assert correlations(first, second) == {}


def _without_parts(side: Side) -> Side:
    return replace(side, folder=side.folder.parent)


def _another_detector(side: Side) -> Side:
    return replace(side, row={**side.row, "detector": "unknown"})


def _other_labels(side: Side) -> Side:
    clean, part = load_part(side.folder, "clean-seed3"), load_part(side.folder, TASK.key)
    assert clean is not None
    assert part is not None
    labels = np.arange(150) % 2
    return write(side.folder.parent / "other", (replace(clean, labels=labels), replace(part, labels=labels)))


def _damaged(side: Side) -> Side:
    (side.folder / FOLDER / f"{TASK.key}.safetensors").write_bytes(b"x")
    return side


@pytest.mark.parametrize("spoil", [_without_parts, _another_detector, _other_labels, _damaged])
def test_what_cannot_be_paired_is_not(
    spoil: Callable[[Side], Side], tmp_path: Path, outcomes: list[Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    first, second = (write(tmp_path / str(place), outcome) for place, outcome in enumerate(outcomes))
    assert correlations(first, second)
    spoiled = spoil(first)
    assert correlations(spoiled, second) == correlations(second, spoiled) == {}
