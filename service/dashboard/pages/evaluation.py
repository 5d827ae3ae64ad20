"""What attacks get through: the runs of lgm evaluate that lie in the settings' folder."""

import asyncio
from html import escape
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse
from nicegui import app as nicegui_app

from service.dashboard import words
from service.dashboard.markup import RIGHT, card, empty, quiet, table
from service.dashboard.options import PREFIX
from service.dashboard.runs import REPORT, RESULTS, Row, Run, file_of, find_runs
from service.dashboard.sessions import Session
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State

# A report is a page of its own: it runs nothing and loads nothing, whoever wrote it.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
HOW = "lgm evaluate BUNDLE --output FOLDER/NAME writes one; the setting reports names FOLDER."
MOST_ROWS = 60
WEAK = 0.5  # less than every second one caught
TO_CATCH = ("attack", "foreign")  # what is corrupted a little is rightly let through
DETAILS = {"steps": "{} steps", "seed": "seed {}"}
KNOWLEDGE = {"zero": "the network", "full": "the detector too"}
COLUMNS = (
    ("Attack", ""),
    ("eps", RIGHT),
    ("caught at 1 %", RIGHT),  # what the page is for, so that a phone shows it
    ("knows", RIGHT),
    ("accuracy under it", RIGHT),
    ("misread", RIGHT),
    ("AUROC", RIGHT),
    ("caught at 5 %", RIGHT),
)


def register(state: State) -> None:
    add_page(state, "/evaluation", build)

    @nicegui_app.get("/reports/{name}/{file}")
    async def report(request: Request, name: str, file: str) -> Response:
        session: Session = request.scope["state"]["session"]
        folder = state.options.reports
        path = None if folder is None else file_of(folder, name, file)
        if path is None or not session.identity.may("review"):
            return Response("no such report", 404)
        return FileResponse(path, headers={"content-security-policy": REPORT_POLICY})


async def build(tab: Tab) -> None:
    html('<h1>Evaluation</h1><p class="quiet">What attacks get through, measured offline.</p>', classes="title")
    folder = tab.state.options.reports
    if folder is None:
        html(empty(f"No folder of evaluation runs is set. {HOW}"))
        return
    try:
        runs = await asyncio.to_thread(find_runs, folder)
    except OSError as error:
        html(
            f'<p class="fault" role="alert">The folder of reports cannot be read: {escape(error.strerror or "")}.</p>'
        )
        return
    if not runs:
        html(empty(f"There is no run yet. {HOW}"))
    for run in runs:
        with element("section", "card", **{"aria-label": f"Run {run.name}"}):
            html(show(run))


def show(run: Run) -> str:
    base = f"{PREFIX}/reports/{quote(run.name, safe='')}"
    links = [f'<a class="button" href="{base}/{RESULTS}" download="{escape(run.name)}.json">Results as JSON</a>']
    if run.has_report:
        links.insert(
            0, f'<a class="button" href="{base}/{REPORT}" target="_blank" rel="noopener">Open the report</a>'
        )
    actions = f'<p class="actions">{"".join(links)}</p>'
    results = run.results
    if results is None:
        told = f'<p class="fault">These results cannot be read: {escape(run.fault)}</p>'
        return card(run.name, told + actions, unit=words.date(run.changed))
    bundle = results.bundle
    told = (
        f"<p>{escape(bundle.name)} <code>{escape(bundle.version)}</code> on {escape(results.data.name)}, "
        f"promise {words.percent(bundle.false_alarm_rate)}</p>"
    )
    if results.refusal is not None:
        told += f'<p class="fault">Do not rely on these figures: {escape(results.refusal)}</p>'
    return card(run.name, told + actions + _table(results.verdicts, run.name), unit=words.date(run.changed))


def _table(rows: tuple[Row, ...], name: str) -> str:
    if not rows:
        return quiet("No attack was tried.")
    drawn = table(COLUMNS, [_row(row, rows) for row in rows[:MOST_ROWS]], label=f"Attacks of {name}")
    hidden = len(rows) - MOST_ROWS
    return drawn + (quiet(f"{hidden} more rows are in the report.") if hidden > 0 else "")


def _row(row: Row, rows: tuple[Row, ...]) -> tuple[str, ...]:
    caught = words.percent(row.tpr_at_fpr_1)
    weak = row.group in TO_CATCH and row.tpr_at_fpr_1 is not None and row.tpr_at_fpr_1 < WEAK
    return (
        _name(row, rows),
        words.NONE if row.eps is None else f"{row.eps:g}",
        f'<span class="bad">{caught}</span>' if weak else caught,
        escape(KNOWLEDGE.get(row.knowledge or "", row.knowledge or words.NONE)),
        words.percent(row.attacked_accuracy),
        f"{words.count(row.num_successful)} of {words.count(row.num_adversarial)}",
        words.NONE if row.auroc is None else f"{row.auroc:.3f}",
        words.percent(row.tpr_at_fpr_5),
    )


def _name(row: Row, rows: tuple[Row, ...]) -> str:
    """The attack, how severe it is, and in what else it differs from the other rows of it."""
    same = [other for other in rows if other.attack == row.attack]
    told = [] if row.severity is None else [f"severity {row.severity}"]
    for detail, text in DETAILS.items():
        if len({getattr(other, detail) for other in same}) > 1:
            told.append(text.format(getattr(row, detail)))
    return escape(row.attack) + (f'<br><span class="quiet small">{", ".join(told)}</span>' if told else "")
