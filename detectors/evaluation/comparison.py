"""A comparison as a table, a page and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from rich.table import Table

from detectors.evaluation import page
from detectors.evaluation.compare import TITLES, Comparison, Difference
from detectors.evaluation.table import area, percent


def comparison_table(comparison: Comparison) -> Table:
    """For a terminal; differences whose interval leaves out zero are bold."""
    names = [_name(results) for results in (comparison.first, comparison.second)]
    table = Table(
        title=f"first: {names[0]}; second: {names[1]}",
        title_justify="left",
        caption=comparison.method,
        caption_justify="left",
    )
    for title in HEAD:
        table.add_column(title, justify="left" if title in {"attack", "knows", "detector", "figure"} else "right")
    for found in comparison.differences:
        table.add_row(*_texts(found), style="bold" if found.clear else None)
    return table


HEAD = ("attack", "eps", "knows", "seed", "detector", "figure", "first", "second", "difference", "95 % interval")


def _texts(found: Difference) -> list[str]:
    told = area if found.figure == "auroc" else percent
    attack = found.attack if found.severity is None else f"{found.attack} {found.severity}"
    return [
        attack,
        "–" if found.eps is None else f"{found.eps:.4g}",
        found.knowledge,
        str(found.seed),
        found.detector,
        TITLES[found.figure],
        told(found.first),
        told(found.second),
        _signed(found.difference, found.figure),
        f"{_signed(found.interval[0], found.figure)} to {_signed(found.interval[1], found.figure)}",
    ]


def _signed(value: float, figure: str) -> str:
    return f"{value:+.4f}" if figure == "auroc" else f"{100 * value:+.1f}"


def _name(results: Mapping[str, Any]) -> str:
    return f"{results['bundle']['name']} {results['bundle']['version']} on {results['data']['name']}"


def comparison_page(comparison: Comparison) -> str:
    """A page that stands alone."""
    title = f"{comparison.first['bundle']['name']} against {comparison.second['bundle']['name']}"
    clear = [found for found in comparison.differences if found.clear]
    told = (
        f"{len(clear)} of {len(comparison.differences)} differences are larger than chance explains (their 95 % "
        "interval leaves out zero); with so many compared, one in twenty does so by chance."
    )
    cautions = "".join(page.paragraph(caution) for caution in comparison.cautions)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="verdict{" warn" if cautions else ""}">{page.paragraph(told)}{cautions}</div>',
        page.facts([("first", _name(comparison.first)), ("second", _name(comparison.second))]),
        page.heading("Differences, second less first"),
        page.paragraph(
            f"Shares in percentage points. {comparison.method} Higher is better but for SR@5 and false alarms.",
            "quiet",
        ),
        page.table(HEAD, _page_rows(comparison.differences), numbers=("eps", "seed", *HEAD[6:])),
        page.heading("How they were run"),
        *(f"<pre>{escape(str(one.get('command', '')))}</pre>" for one in (comparison.first, comparison.second)),
    ]
    return page.page(title, body)


def _page_rows(differences: Sequence[Difference]) -> list[tuple[str, list[page.Cell]]]:
    named = (0, 2, 4, 5)
    return [
        (
            "clear" if found.clear else "",
            [(text, "name") if place in named else text for place, text in enumerate(_texts(found))],
        )
        for found in differences
    ]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """For machines."""
    return {
        "first": comparison.first["bundle"],
        "second": comparison.second["bundle"],
        "cautions": comparison.cautions,
        "method": comparison.method,
        "differences": [asdict(found) | {"clear": found.clear} for found in comparison.differences],
    }
