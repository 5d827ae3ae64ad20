"""A stand-alone page: everything escaped, nothing loaded from anywhere, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2430; --quiet: #5d6878; --line: #dde2ea; --card: #f5f7fa;
  --good: #1a7f56; --warn: #a86400; --bad: #c02a3d; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #e4e9f0; --quiet: #98a3b3; --line: #2b333e;
  --card: #1a2028; --good: #4fc38f; --warn: #e0a344; --bad: #f0717f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 80px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { max-width: 96ch; margin: 8px 0; }
p, li, dd { overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: 14px; }
.verdict { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--good);
  border-radius: 8px; padding: 12px 18px; margin: 18px 0; }
.verdict.warn { border-left-color: var(--warn); }
.verdict.refuse { border-left-color: var(--bad); }
.verdict p { margin: 6px 0; }
.verdict p:first-child { font-weight: 650; font-size: 17px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 10px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; background: var(--card); }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.name { white-space: nowrap; }
.wide { min-width: 210px; }
tr.main, tr.clear { font-weight: 650; }
tr.main td, tr.main th { border-top: 2px solid var(--line); }
.passed { color: var(--good); } .warned { color: var(--warn); font-weight: 650; }
.refused { color: var(--bad); font-weight: 700; } .skipped { color: var(--quiet); }
.plot { overflow-x: auto; margin: 12px 0; }
.plot svg { max-width: 100%; height: auto; min-width: min(100%, 330px); }
.misses { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; margin: 14px 0; }
.miss { border: 1px solid var(--line); border-radius: 8px; padding: 12px; background: var(--card); margin: 0; }
.miss .pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.miss .pictures div { font-size: 12px; color: var(--quiet); text-align: center; }
.miss img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); display: block; }
.miss figcaption { font-size: 13px; margin-top: 8px; }
dl { display: grid; grid-template-columns: minmax(110px, 190px) 1fr; gap: 4px 16px; font-size: 14px; margin: 10px 0; }
dt { color: var(--quiet); } dd { margin: 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
details { margin: 12px 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 560px) { main { padding: 18px 14px 60px; } h1 { font-size: 22px; }
  dl { grid-template-columns: 1fr; gap: 0; } .name { white-space: normal; } dd { margin-bottom: 8px; }
  .plot svg { min-width: 640px; }
  .plot.small svg { min-width: 330px; } }
@media print { .scroll { overflow: visible; } }
"""

Cell = str | tuple[str, str]  # text, or text with its class


def page(title: str, body: Iterable[str]) -> str:
    """The whole document around sections that are HTML already."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def table(names: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]], *, numbers: Sequence[str] = ()) -> str:
    """A table that scrolls by itself; rows are (class, cells); columns in `numbers` are right-aligned."""
    kinds = ["number" if name in numbers else "" for name in names]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(name)}</th>' for name, kind in zip(names, kinds, strict=True)
    )
    body = "".join(f"<tr{_class(kind)}>{_cells(cells, kinds)}</tr>\n" for kind, cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they are."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(told)}</dd>' for term, told in pairs)}</dl>"


def plot(svg: str, label: str, *, small: bool = False) -> str:
    """An inline drawing with its name for those who cannot see it; nothing where nothing was drawn."""
    if not svg:
        return ""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return f'<div class="plot{" small" if small else ""}">{labelled}</div>'


def _cells(cells: Sequence[Cell], kinds: Sequence[str]) -> str:
    texts = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    return "".join(
        f"<td{_class(' '.join(filter(None, (kind, own))))}>{escape(text)}</td>"
        for (text, own), kind in zip(texts, kinds, strict=True)
    )


def _class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""
