"""Charts as HTML and SVG: what stretches is SVG, what is written is HTML, so that letters keep their size.

Pure functions of numbers and text; all text is escaped. Colours are classes of the style sheet, in both themes. Each
chart says in words what it shows, for those who cannot see it.
"""

from service.dashboard.charts.frame import Axis, axis_to, frame, legend
from service.dashboard.charts.histogram import histogram
from service.dashboard.charts.plane import plane
from service.dashboard.charts.rows import Box, Dot, boxes, dots
from service.dashboard.charts.series import Line, series

__all__ = [
    "Axis",
    "Box",
    "Dot",
    "Line",
    "axis_to",
    "boxes",
    "dots",
    "frame",
    "histogram",
    "legend",
    "plane",
    "series",
]
