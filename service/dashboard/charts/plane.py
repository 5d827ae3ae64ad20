"""Class Gaussians in a plane, and how an image's features move among them."""

import math
from collections.abc import Sequence
from html import escape

from service.dashboard.findings import ClassEllipse, Judged

SIDE = (560.0, 380.0)
MARGIN = 26.0
REACH = 2.0  # sigmas that must be seen of the classes that span the plane
Point = tuple[float, float]


class _View:
    """Feature space's units -> the drawing's, alike along both axes."""

    def __init__(self, points: Sequence[Point]):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        width, height = max(xs) - min(xs), max(ys) - min(ys)
        self.scale = min((SIDE[0] - 2 * MARGIN) / max(width, 1e-9), (SIDE[1] - 2 * MARGIN) / max(height, 1e-9))
        self._centre = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2

    def __call__(self, point: Point) -> Point:
        x, y = point
        return (
            round(SIDE[0] / 2 + (x - self._centre[0]) * self.scale, 1),
            round(SIDE[1] / 2 - (y - self._centre[1]) * self.scale, 1),
        )


def plane(
    classes: Sequence[ClassEllipse], anchors: Sequence[str], clean: Judged, attacked: Judged, *, label: str
) -> str:
    strong = [one for one in classes if one.label in anchors]
    corners = [corner for one in strong for corner in _corners(one)]
    view = _View([*corners, clean.position, attacked.position])
    faint = "".join(_class(one, view) for one in classes if one.label not in anchors)
    drawn = "".join(_class(one, view) for one in strong)
    return (
        f'<svg class="plane" viewBox="0 0 {SIDE[0]:g} {SIDE[1]:g}" role="img" aria-label="{escape(label)}">'
        f'<g class="faint">{faint}</g>{drawn}{_way(view(clean.position), view(attacked.position))}</svg>'
    )


def _class(one: ClassEllipse, view: _View) -> str:
    x, y = view(one.centre)
    turned = f'transform="rotate({-math.degrees(one.angle):.1f} {x:g} {y:g})"'
    rings = "".join(
        f'<ellipse class="ring{outer}" cx="{x:g}" cy="{y:g}" rx="{sigmas * one.half_axes[0] * view.scale:.1f}" '
        f'ry="{sigmas * one.half_axes[1] * view.scale:.1f}" {turned}/>'
        for sigmas, outer in ((2, " outer"), (1, ""))
    )
    return (
        f'{rings}<circle class="mean" cx="{x:g}" cy="{y:g}" r="3"/>'
        f'<text x="{x + 7:g}" y="{y - 7:g}">{escape(one.label)}</text>'
    )


def _way(clean: Point, attacked: Point) -> str:
    (x, y), (to_x, to_y) = clean, attacked
    return (
        f'<path class="path" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'
        f'<circle class="clean" cx="{x:g}" cy="{y:g}" r="6.5"/>'
        f'<rect class="attacked" x="{to_x - 6:g}" y="{to_y - 6:g}" width="12" height="12" rx="2"/>'
    )


def _corners(one: ClassEllipse) -> list[Point]:
    reach = REACH * one.half_axes[0]
    x, y = one.centre
    return [(x - reach, y - reach), (x + reach, y + reach)]
