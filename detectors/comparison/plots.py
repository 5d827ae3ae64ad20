"""Plots of a comparison, in the evaluation's style: feature planes with their likelihood, intervals, grids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator, PercentFormatter

from detectors.comparison.judging import look
from detectors.comparison.summaries import Summary
from detectors.comparison.wording import is_share
from detectors.evaluation.plots import COLOURS, INK, STYLE, panels
from model import gaussian
from model.checkpoint import Checkpoint
from model.data import load_splits

NUM_POINTS = 1500
RESOLUTION = 120
LARGEST_FALL = 30.0  # nats below the highest likelihood that the landscape tells apart
ELLIPSE = 2.0  # standard deviations
PLAIN_STYLE = {**STYLE, "axes.grid": False}
TEN = (*COLOURS, "#5b6b7a", "#e08fb0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """Two-dimensional test features (n, 2), labels (n,), class means and standard deviations (k, 2), and the
    log-likelihood (y, x) over the extent (left, right, bottom, top).
    """

    title: str
    features: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    likelihood: np.ndarray
    extent: tuple[float, float, float, float]


@torch.inference_mode()
def plane_of(checkpoint: Checkpoint, title: str) -> Plane:
    """What is to be drawn of a network with two features."""
    network, test = checkpoint.build_network(), load_splits(checkpoint.config.data).test
    features = look(network, test.images[:NUM_POINTS]).features
    mixture = network.mixture
    variances = torch.zeros(1, 1) if mixture.log_variances is None else mixture.log_variances
    low, high = features.double().quantile(0.005, 0), features.double().quantile(0.995, 0)
    margin = 0.12 * (high - low).clamp_min(1e-6)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    x = torch.linspace(left, right, RESOLUTION, dtype=torch.float64)
    y = torch.linspace(bottom, top, RESOLUTION, dtype=torch.float64)
    points = torch.cartesian_prod(y, x).flip(1).float()
    return Plane(
        title=title,
        features=features.numpy(),
        labels=test.labels[:NUM_POINTS].numpy(),
        means=mixture.means.numpy(),
        deviations=(variances / 2).exp().expand_as(mixture.means).numpy(),
        likelihood=gaussian.log_likelihood(mixture(points)).view(RESOLUTION, RESOLUTION).numpy(),
        extent=(left, right, bottom, top),
    )


def draw_planes(planes: Sequence[Plane]) -> Figure | None:
    """Side by side: test images by class, means, ellipses of two deviations, and the likelihood as a landscape."""
    if not planes:
        return None
    with matplotlib.rc_context(PLAIN_STYLE):
        figure, axes = panels(len(planes), columns=4)
        for plane, axis in zip(planes, axes, strict=True):
            _draw_plane(axis, plane)
        return figure


def _draw_plane(axis: Axes, plane: Plane) -> None:
    highest = float(plane.likelihood.max())
    axis.imshow(
        np.maximum(plane.likelihood, highest - LARGEST_FALL),
        extent=plane.extent,
        origin="lower",
        aspect="auto",
        cmap="Greys",
        alpha=0.55,
        interpolation="bilinear",
    )
    for index, mean in enumerate(plane.means):
        own, colour = plane.features[plane.labels == index], TEN[index % len(TEN)]
        axis.scatter(own[:, 0], own[:, 1], s=3, color=colour, linewidths=0, alpha=0.7, rasterized=True)
        width, height = 2 * ELLIPSE * plane.deviations[index]
        axis.add_patch(Ellipse((mean[0], mean[1]), width, height, fill=False, edgecolor=colour, linewidth=1.2))
        axis.plot(mean[0], mean[1], "+", color=INK, markersize=6)
    left, right, bottom, top = plane.extent
    axis.set(title=plane.title, xlim=(left, right), ylim=(bottom, top))
    axis.tick_params(labelsize=7)


def draw_intervals(summary: Summary, shown: Mapping[str, str]) -> Figure | None:
    """Each figure (name -> title) of every variant, one plot a figure: the mean and its interval.

    None where there is but one variant or one seed.
    """
    if not shown or len(summary.variants) < 2 or len(summary.experiment.seeds) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(shown))
        height = max(figure.get_figheight(), (0.19 * len(summary.variants) + 1) * -(-len(shown) // 3))
        figure.set_figheight(height)
        variants = list(summary.variants)
        for place, ((name, title), axis) in enumerate(zip(shown.items(), axes, strict=True)):
            for row, variant in enumerate(variants):
                found = summary.variants[variant].get(name)
                if found is None:
                    continue
                colour = COLOURS[1] if variant == summary.reference else COLOURS[0]
                axis.plot([max(0.0, found.low), min(1.0, found.high)], [row, row], color=colour, linewidth=1.4)
                axis.plot(found.mean, row, "o", color=colour, markersize=4)
            labels = variants if place % 3 == 0 else [""] * len(variants)
            axis.set_yticks(range(len(variants)), labels, fontsize=7.5)
            axis.set(title=title, ylim=(len(variants) - 0.5, -0.5))
            axis.xaxis.set_major_locator(MaxNLocator(4))  # labels side by side
            if is_share(name):
                axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        return figure


def draw_grids(summary: Summary, shown: Mapping[str, str]) -> Figure | None:
    """A grid of two axes as a field of numbers, one plot a figure; None for other experiments."""
    grid = summary.experiment.grid
    if len(grid) != 2 or len(summary.experiment.losses) != 1 or not shown:
        return None
    (down, rows), (across, columns) = grid.items()
    loss = summary.experiment.losses[0]
    names = [key.rpartition(".")[2] for key in (down, across)]
    with matplotlib.rc_context(PLAIN_STYLE):
        figure, axes = panels(len(shown))
        for (name, title), axis in zip(shown.items(), axes, strict=True):
            variants = [[f"{loss} {names[0]}={row} {names[1]}={column}" for column in columns] for row in rows]
            field = np.array([[_mean(summary, variant, name) for variant in line] for line in variants])
            axis.imshow(field, cmap="Blues", aspect="auto", alpha=0.6)
            for (row, column), value in np.ndenumerate(field):
                axis.text(
                    column, row, "–" if np.isnan(value) else f"{value:.4g}", ha="center", va="center", fontsize=8
                )
            axis.set_xticks(range(len(columns)), [f"{value}" for value in columns])
            axis.set_yticks(range(len(rows)), [f"{value}" for value in rows])
            axis.set(title=title, xlabel=names[1], ylabel=names[0])
        return figure


def _mean(summary: Summary, variant: str, name: str) -> float:
    found = summary.variants[variant].get(name)
    return float("nan") if found is None else found.mean
