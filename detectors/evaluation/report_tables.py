"""The tables of report.html."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectors.evaluation import page
from detectors.evaluation.parts import FUSED
from detectors.evaluation.rows import Row
from detectors.evaluation.table import area, case_cells, cells, percent, worth_telling

Results = Mapping[str, Any]
CASE = ("attack", "eps", "steps", "knows")
LEVELS = {"passed": "passed", "warn": "warned", "refuse": "refused", "not run": "skipped"}
NUMBERS = (
    "eps",
    "steps",
    "accuracy",
    "judged",
    "AUROC",
    "95 % interval",
    "TPR@5%",
    "TPR@1%",
    "SR@5",
    "SR@50",
    "time",
    "seed",
)


def figures(results: Results) -> Iterator[str]:
    """What was measured of every attack, detector and seed, and of clean images."""
    yield page.paragraph(
        "Of attacks, AUROC and TPR compare clean test images that are classified right with the images that were "
        "classified right before the attack and wrong after it (“judged”); all attacked images are in results.json. "
        "Of corruptions and foreign sets they are over all images. AUROC orders raw scores, because p-values beyond "
        "the furthest calibration score are all equal; TPR@5% and TPR@1% flag p ≤ 0.05 and p ≤ 0.01, and what these "
        "thresholds flag of clean images stands below. SR@5 and SR@50: the share of all attacked images that are "
        "misclassified and not flagged with the false-alarm rate set to 5 % and 50 %; lower is better. The "
        "interval of an AUROC is the bootstrap's or, where that is too narrow, Newcombe's. eps is in linf where no "
        "norm is named.",
        "quiet",
    )
    rows = results["rows"]
    if not rows:
        yield page.paragraph("Nothing was attacked; what was found of clean images stands under the self-checks.")
        return
    several = len({row["seed"] for row in rows}) > 1
    yield "<h3>The verdict (detector “fused” in results.json)</h3>"
    yield _rows_table([row for row in rows if row["detector"] == FUSED], several=several, without="detector")
    if several:
        yield from _over_seeds(results)
    if len(worth_telling(rows)) > len(rows) / 2:
        yield from _side_by_side(results)
        table = _rows_table(rows, several=several, without="")
        yield f"<details><summary>Every detector, every row</summary>{table}</details>"
    yield page.heading("Clean images")
    yield _clean(results)


def _rows_table(rows: Sequence[Row], *, several: bool, without: str) -> str:
    names = [name for name in cells(rows[0]) if (several or name != "seed") and name != without]
    return page.table(names, [("", _named(cells(row), names)) for row in rows], numbers=NUMBERS)


def _side_by_side(results: Results) -> Iterator[str]:
    """Detectors as columns, on the same network, images and attacks; means over the seeds."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for found in results["over_seeds"]:
        cases.setdefault(_case(found), {})[found["detector"]] = found
    detectors = list(next(iter(cases.values())))
    for title, figure, told in (("AUROC", "auroc", area), ("TPR@5%", "tpr_at_fpr_5", percent)):
        yield f"<h3>{title} by detector</h3>"
        rows: list[tuple[str, list[page.Cell]]] = []
        for case, by_detector in cases.items():
            values = [by_detector[name][figure] for name in detectors]
            shown = [told(value["mean"] if value else None) for value in values]
            rows.append(("", [(case[0], "name"), *case[1:], *shown]))
        yield page.table([*CASE, *detectors], rows, numbers=("eps", "steps", *detectors))


def _case(found: Row) -> tuple[str, ...]:
    return tuple(case_cells(found).values())


def _named(shown: Mapping[str, str], names: Sequence[str]) -> list[page.Cell]:
    return [(shown[name], "name") if name in {"attack", "detector", "knows"} else shown[name] for name in names]


def _over_seeds(results: Results) -> Iterator[str]:
    yield page.paragraph("The verdict over the seeds: mean, and in brackets the least and the most.")
    figures = {
        "AUROC": ("auroc", area),
        "TPR@5%": ("tpr_at_fpr_5", percent),
        "TPR@1%": ("tpr_at_fpr_1", percent),
        "SR@5": ("sr_at_5", percent),
    }
    rows: list[tuple[str, list[page.Cell]]] = []
    for found in results["over_seeds"]:
        if found["detector"] == FUSED:
            case = _case(found)
            spread = [_spread(found[name], told) for name, told in figures.values()]
            rows.append(("", [(case[0], "name"), *case[1:], *spread]))
    yield page.table([*CASE, *figures], rows, numbers=("eps", "steps", *figures))


def _spread(values: Mapping[str, float] | None, told: Any) -> str:
    if values is None:
        return "–"
    return f"{told(values['mean'])} [{told(values['min'])}, {told(values['max'])}]"


def _clean(results: Results) -> str:
    names = ["detector", "seed", "images", "accuracy", "right and unflagged", "flagged", "99 % interval", "promised"]
    rows: list[tuple[str, Sequence[page.Cell]]] = []
    for found in results["clean"]:
        low, high = found["overall"]["interval"]
        texts = [found["detector"], str(found["seed"]), f"{found['num_images']:,}", percent(found["accuracy"], 2)]
        texts += [percent(found["right_and_unflagged"], 2), percent(found["overall"]["share"], 2)]
        texts += [f"{percent(low, 2)} to {percent(high, 2)}", percent(found["promise"], 2)]
        rows.append(("main" if found["detector"] == FUSED else "", texts))
    return page.table(names, rows, numbers=names[1:])


def worst_cases(results: Results) -> Iterator[str]:
    """The per-input worst case within each budget."""
    yield page.paragraph(
        "An image counts as lost as soon as one attack of the run within that budget gets through. Right or flagged: "
        "the share of images that are classified right or flagged, at the bundle's promise.",
        "quiet",
    )
    names = ["budget", "attacks", "knows", "seed", "right", "right or flagged", "SR@1", "SR@5", "SR@50"]
    rows = []
    for found in results["worst_cases"]:
        if found["detector"] == FUSED:
            budget = "any" if found["eps"] is None else f"{found['norm']} ≤ {found['eps']:.4g}"
            shares = ["robust_accuracy", "robust_accuracy_with_rejection", "sr_at_1", "sr_at_5", "sr_at_50"]
            attacks = (", ".join(found["attacks"]), "wide")
            texts: list[page.Cell] = [(budget, "name"), attacks, found["knowledge"], str(found["seed"])]
            rows.append(("", texts + [percent(found[name]) for name in shares]))
    yield page.table(names, rows, numbers=names[3:]) if rows else page.paragraph("No attack was run.")


def checks(results: Results) -> str:
    """Every self-check and how it went."""
    rows = [
        (
            "",
            [(check["name"], "name"), (check["level"], f"name {LEVELS[check['level']]}"), (check["message"], "wide")],
        )
        for check in results["checks"]
    ]
    return page.table(["check", "outcome", "what was found"], rows)
