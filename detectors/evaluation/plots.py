"""Plots of a report: matplotlib -> SVG that stands inside a page and takes its colours from the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from detectors.evaluation import metrics
from detectors.evaluation.parts import FUSED
from detectors.evaluation.rows import LEVEL, Measured, Row

INK = "#010203"  # stands for the page's own text colour
COLOURS = ("#2f6fde", "#d9622b", "#1f9d6b", "#b14fc5", "#c9a100", "#c8354a", "#2aa5b8", "#8a6a4a")
PANEL = (3.6, 2.7)  # inches
MAX_PANELS = 12
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "lgm-guard",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}


def to_svg(figure: Figure) -> str:
    """Inline SVG: no header, no name spaces, no identifiers that another figure has as well."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata, bbox_inches="tight", pad_inches=0.06)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    return text.replace(INK, "currentColor").replace("xlink:href", "href")


def panels(count: int, *, columns: int = 3, share_axes: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many small plots, at most so many columns of them."""
    columns = min(columns, max(1, count))
    lines = -(-count // columns)
    figure = Figure(
        figsize=(PANEL[0] * columns, PANEL[1] * lines), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1)
    )
    grid = figure.subplots(lines, columns, squeeze=False, sharex=share_axes, sharey=share_axes).ravel().tolist()
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, grid[:count]


def title_of(measured: Measured) -> str:
    """What was measured, short."""
    task = measured.task
    eps = "" if task.eps is None else f" {task.eps:.3g}"
    return f"{task.title}{eps}"


def draw_rocs(measured: Sequence[Measured]) -> str:
    """ROC curves, one plot a task, one line a detector; the false-alarm axis is logarithmic."""
    with matplotlib.rc_context(STYLE):
        return _rocs(measured)


def _names(measured: Measured) -> list[str]:
    """The verdict, then the detectors but for one whose scores are the verdict's own."""
    fused = measured.part.scores[FUSED]
    others = measured.part.detectors[1:]
    return [FUSED, *(name for name in others if not np.array_equal(measured.part.scores[name], fused))]


def draw_histograms(measured: Sequence[Measured]) -> str:
    """The verdict's scores of clean images against those of attacked ones."""
    with matplotlib.rc_context(STYLE):
        return _histograms(measured)


def _rocs(measured: Sequence[Measured]) -> str:
    drawable = [one for one in measured if one.judged.any() and one.clean.right.any()][:MAX_PANELS]
    if not drawable:
        return ""
    figure, axes = panels(len(drawable))
    for one, axis in zip(drawable, axes, strict=True):
        for index, name in enumerate(_names(one)):
            clean = one.clean.scores[name][one.clean.right]
            false_positive, true_positive = metrics.roc(clean, one.part.scores[name][one.judged])
            style = {"linewidth": 2.0} if name == FUSED else {"linewidth": 1.1, "linestyle": "--"}
            floor = np.maximum(false_positive, 5e-4)
            axis.plot(floor, true_positive, color=COLOURS[index % len(COLOURS)], label=name, **style)
        for rate in (0.01, 0.05):
            axis.axvline(rate, color=INK, linewidth=0.8, alpha=0.35, linestyle=":")
        axis.set(xscale="log", xlim=(5e-4, 1), ylim=(-0.02, 1.02), title=title_of(one))
        axis.set_xticks([0.001, 0.01, 0.05, 1], ["0.1 %", "1 %", "5 %", "100 %"], minor=False)
        axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        axis.minorticks_off()
    axes[0].set(ylabel="attacked images caught")
    axes[0].legend(loc="lower right")
    figure.supxlabel("clean images flagged", fontsize=9, color=INK)
    return to_svg(figure)


def _histograms(measured: Sequence[Measured]) -> str:
    drawable = [one for one in measured if one.judged.any() and one.clean.right.any()][:MAX_PANELS]
    if not drawable:
        return ""
    figure, axes = panels(len(drawable))
    for one, axis in zip(drawable, axes, strict=True):
        clean, attacked = one.clean.scores[FUSED][one.clean.right], one.part.scores[FUSED][one.judged]
        both = np.concatenate([clean, attacked])
        both = both[np.isfinite(both)]
        low, high = np.quantile(both, [0.0, 0.995]) if len(both) else (0.0, 1.0)
        bins = np.linspace(low, high if high > low else low + 1, 41)
        for values, colour, label in ((clean, COLOURS[0], "clean"), (attacked, COLOURS[1], "attacked")):
            within = np.clip(values[~np.isnan(values)], bins[0], bins[-1])
            weights = np.full(len(within), 1 / max(1, len(within)))
            axis.hist(within, bins=bins.tolist(), weights=weights, color=colour, alpha=0.55, label=label)
        axis.set(title=title_of(one), yticks=[])
    axes[0].legend(loc="upper right")
    figure.supxlabel("score of the verdict; the last bar holds all beyond", fontsize=9, color=INK)
    return to_svg(figure)


def draw_curves(rows: Sequence[Row]) -> str:
    """Security curves of the verdict, one plot an attack: what becomes of all images as eps grows."""
    with matplotlib.rc_context(STYLE):
        return _curves(rows)


def _curves(rows: Sequence[Row]) -> str:
    lines: dict[tuple[str, str, object], list[Row]] = {}
    for row in rows:
        if row["group"] == "attack" and row["detector"] == FUSED and row["eps"] is not None:
            lines.setdefault((row["attack"], row["norm"], row["steps"]), []).append(row)
    chosen = list(lines.items())[:MAX_PANELS]
    if not chosen:
        return ""
    figure, axes = panels(len(chosen))
    for ((attack, norm, steps), found), axis in zip(chosen, axes, strict=True):
        _curve(axis, found)
        suffix = "" if steps is None else f", {steps} steps"
        axis.set(title=f"{attack} ({norm}{suffix})", ylim=(-0.02, 1.02))
        axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes[0].legend(loc="best")
    figure.supxlabel("eps", fontsize=9, color=INK)
    return to_svg(figure)


def _curve(axis: Axes, rows: Sequence[Row]) -> None:
    """Means over the seeds; at eps 0 stand the clean images."""
    eps = sorted({row["eps"] for row in rows})
    at = {value: [row for row in rows if row["eps"] == value] for value in eps}

    def mean(name: str) -> list[float]:
        return [float(np.mean([row[name] for row in at[value]])) for value in eps]

    accuracy = float(np.mean([row["clean_accuracy"] for row in rows]))
    alarms = float(np.mean([row["realised_false_alarm_rate"] for row in rows]))
    through = [1 - value for value in mean("robust_accuracy_with_rejection")]
    series = (
        ("classified right", [accuracy, *mean("attacked_accuracy")], COLOURS[0], "o-"),
        ("flagged", [alarms, *mean("flagged_share")], COLOURS[2], "s-"),
        ("got through", [None, *through], COLOURS[5], "^-"),
    )
    for label, values, colour, style in series:
        shown = [np.nan if value is None else value for value in values]
        axis.plot([0, *eps], shown, style, color=colour, label=label, markersize=4)


def draw_alarms(figures: Mapping[str, Any], promise: float) -> str:
    """Flagged share of clean images by predicted class with exact intervals; the line is the promise."""
    with matplotlib.rc_context(STYLE):
        return _alarms(figures, promise)


def _alarms(figures: Mapping[str, Any], promise: float) -> str:
    shown = [(name, found) for name, found in figures["by_class"].items() if found["num_images"]][:60]
    figure = Figure(figsize=(max(4.5, 0.42 * len(shown) + 2), 2.9), layout="constrained")
    axis = figure.subplots()
    values = np.array([found["share"] for _, found in shown])
    bounds = np.array([found["interval"] for _, found in shown]).reshape(-1, 2)
    spread = np.clip(np.stack([values - bounds[:, 0], bounds[:, 1] - values]), 0, None)
    axis.errorbar(np.arange(len(shown)), values, spread, fmt="o", color=COLOURS[0], capsize=3, markersize=4)
    axis.axhline(promise, color=COLOURS[5], linewidth=1.2, linestyle="--", label=f"promised: {promise:.3g}")
    axis.set(ylabel=f"flagged, {LEVEL:.0%} interval", xlabel="predicted class", ylim=(0, None))
    names = [name if len(name) <= 12 else f"{name[:11]}…" for name, _ in shown]
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.set_xticks(np.arange(len(shown)), names, rotation=0 if max(map(len, names), default=0) < 4 else 40)
    axis.legend(loc="upper right")
    return to_svg(figure)
