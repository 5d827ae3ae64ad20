"""Bars over equal bins, against what was expected."""

from collections.abc import Sequence

from service.dashboard.charts.frame import HEIGHT, WIDTH, Axis, frame

GAP = 0.12  # of a bin's width


def histogram(
    counts: Sequence[float],
    expected: Sequence[float],
    *,
    axis: Axis,
    along: Sequence[tuple[float, str]],
    label: str,
    first_kind: str = "",
) -> str:
    """first_kind: class of the first bar, which holds what was flagged."""
    width = WIDTH / len(counts)
    bars = "".join(
        f'<rect class="bar {first_kind if index == 0 else ""}" x="{(index + GAP / 2) * width:.1f}" '
        f'width="{width * (1 - GAP):.1f}" y="{axis.height(count):g}" height="{HEIGHT - axis.height(count):.1f}"/>'
        for index, count in enumerate(counts)
    )
    steps = "".join(
        f"{'M' if index == 0 else 'L'}{index * width:.1f} {axis.height(level):g}"
        f"L{(index + 1) * width:.1f} {axis.height(level):g}"
        for index, level in enumerate(expected)
    )
    return frame(f'{bars}<path class="promise" d="{steps}"/>', axis=axis, along=along, label=label)
