"""The pictures of an experiment: inline SVG for the report, and files small enough for a README."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from detectors.comparison.plots import Plane, draw_grids, draw_intervals, draw_planes
from detectors.comparison.summaries import Summary
from detectors.comparison.wording import title_of
from detectors.evaluation.plots import STYLE, to_svg

TITLES_OF_PICTURES = {"planes": "Feature planes", "grids": "Grids", "intervals": "Means with intervals"}
LARGEST_FILE = 60_000  # bytes
QUALITIES = (85, 70, 55, 40, 25)
DOTS_PER_INCH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """kind: of TITLES_OF_PICTURES; name: that of its file; webp: on white, as small as LARGEST_FILE if it can be."""

    kind: str
    name: str
    svg: str
    webp: bytes


def draw(summary: Summary, planes: Sequence[Plane]) -> list[Picture]:
    """All pictures of an experiment; those that it has nothing for are left out."""
    return list(_pictures(summary, planes))


def _pictures(summary: Summary, planes: Sequence[Plane]) -> Iterator[Picture]:
    areas = [name for name in summary.figures if name.endswith("_auroc")]
    shown = ["accuracy", "detection", *areas, "verification_accuracy"]
    titles = {name: title_of(name) for name in [*shown, "scatter_ratio"] if name in summary.figures}
    drawn = {"planes": draw_planes(planes), "grids": draw_grids(summary, titles)}
    titles.pop("scatter_ratio", None)
    drawn["intervals"] = draw_intervals(summary, titles)
    for kind, figure in drawn.items():
        if figure is not None:
            yield _picture(kind, f"{summary.experiment.name}-{kind}.webp", figure)


def _picture(kind: str, name: str, figure: Figure) -> Picture:
    with matplotlib.rc_context({**STYLE, "savefig.dpi": 130}):
        return Picture(kind=kind, name=name, svg=to_svg(figure), webp=to_webp(figure))


def to_webp(figure: Figure) -> bytes:
    """On white, in the best quality that is small enough."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, facecolor="white", bbox_inches="tight", pad_inches=0.06)
    image = Image.open(file).convert("RGB")
    content = b""
    for quality in QUALITIES:
        found = io.BytesIO()
        image.save(found, "WEBP", quality=quality, method=6)
        content = found.getvalue()
        if len(content) <= LARGEST_FILE:
            break
    return content
