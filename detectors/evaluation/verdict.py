"""A run in plain words: what the figures say, and what they do not."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectors.evaluation.parts import FUSED
from detectors.evaluation.table import percent

Results = Mapping[str, Any]


def verdict_level(results: Results) -> str:
    """The gravest outcome of the self-checks: refuse, warn or passed."""
    levels = {check["level"] for check in results["checks"]}
    return next((level for level in ("refuse", "warn") if level in levels), "passed")


def plain_words(results: Results) -> list[str]:
    """Sentences, the most important one first."""
    level = verdict_level(results)
    refused = [check["message"] for check in results["checks"] if check["level"] == "refuse"]
    opening = {
        "refuse": f"Do not rely on these figures: {'; '.join(refused)}.",
        "warn": "The figures stand, with the warnings of the self-checks below.",
        "passed": "The figures stand: every self-check that could be run passed.",
    }[level]
    rows = [row for row in results["rows"] if row["detector"] == FUSED]
    return [opening, _clean_words(results), *_unaware_words(rows), *_aware_words(rows), *_natural_words(rows)]


def _clean_words(results: Results) -> str:
    first = next(found for found in results["clean"] if found["detector"] == FUSED)
    num_seeds = len({found["seed"] for found in results["clean"]})
    low, high = first["overall"]["interval"]
    more = "" if num_seeds == 1 else f" (first of {num_seeds} seeds)"
    return (
        f"Clean images: {percent(first['accuracy'], 2)} of {first['num_images']:,} are classified right, and "
        f"{percent(first['overall']['share'], 2)} (99 % interval {percent(low, 2)} to {percent(high, 2)}) are "
        f"flagged where at most {percent(first['promise'], 2)} were promised{more}."
    )


def _unaware_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    mine = [row for row in rows if row["knowledge"] == "zero"]
    if not mine:
        return ["No attack that is unaware of the detector was run."]
    won = [row for row in mine if row["tpr_at_fpr_5"] is not None]
    if not won:
        return ["No attack that is unaware of the detector succeeded on any image."]
    worst, through = min(won, key=lambda row: row["tpr_at_fpr_5"]), max(mine, key=lambda row: row["sr_at_5"])
    return [
        f"Attackers unaware of the detector: of the images that fooled the classifier at least "
        f"{percent(worst['tpr_at_fpr_5'])} were caught at 5 % false alarms (worst: {_told(worst)}, "
        f"{percent(worst['tpr_at_fpr_1'])} at 1 %). The most that got through, misclassified and unflagged, is "
        f"{percent(through['sr_at_5'])} of all attacked images ({_told(through)})."
    ]


def _aware_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    mine = [row for row in rows if row["knowledge"] == "full"]
    if not mine:
        return [
            "No attack that knows the detector was run (--adaptive), so nothing here says what such an attacker "
            "would achieve."
        ]
    worst = max(mine, key=lambda row: row["sr_at_5"])
    return [
        f"Attackers who know the detector: {percent(worst['sr_at_5'])} of all attacked images got through at 5 % "
        f"false alarms ({_told(worst)})."
    ]


def _natural_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    words = []
    if foreign := [row for row in rows if row["group"] == "foreign"]:
        worst = min(foreign, key=lambda row: row["flagged_share"])
        words.append(
            f"Images of no class: at least {percent(worst['flagged_share'])} are flagged at the bundle's promise "
            f"(least: {worst['attack']})."
        )
    mild = [row for row in rows if row["needless_flag_rate"] is not None]
    if mild:
        worst = max(mild, key=lambda row: row["needless_flag_rate"])
        words.append(
            f"Mild corruptions that leave the class clear: up to {percent(worst['needless_flag_rate'])} of the "
            f"images are still classified right and yet flagged ({_told(worst)})."
        )
    return words


def _told(row: Mapping[str, Any]) -> str:
    if row["severity"] is not None:
        return f"{row['attack']} at severity {row['severity']}"
    eps = "" if row["eps"] is None else f" at eps {row['eps']:.3g}"
    return f"{row['attack']}{eps}"
