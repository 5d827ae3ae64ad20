"""Pieces of HTML that several pages are made of. Cells and facts are markup already; titles and labels are text."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

RIGHT = "right"
Column = tuple[str, str]  # title and class


def card(title: str, content: str, *, unit: str = "") -> str:
    told = f'<span class="unit">{escape(unit)}</span>' if unit else ""
    return f'<div class="head"><h2>{escape(title)}</h2>{told}</div>{content}'


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """It scrolls by itself, also by keyboard; the first cell of a row names it."""
    heads = "".join(f'<th scope="col" class="{kind}">{escape(title)}</th>' for title, kind in columns)
    body = "".join(f"<tr>{_cells(cells, columns)}</tr>" for cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Mapping[str, str]) -> str:
    told = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{told}</dl>'


def tag(text: str, kind: str = "") -> str:
    return f'<span class="tag {kind}">{escape(text)}</span>'


def empty(text: str) -> str:
    return f'<div class="empty"><div>{escape(text)}</div></div>'


def quiet(text: str) -> str:
    return f'<p class="quiet small">{escape(text)}</p>'


def banner(text: str, kind: str = "") -> str:
    return f'<div class="banner {kind}"><div><p>{escape(text)}</p></div></div>'


def _cells(cells: Sequence[str], columns: Sequence[Column]) -> str:
    first, *others = cells
    told = "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(others, columns[1:], strict=True))
    return f'<th scope="row">{first}</th>{told}'
