"""Whether the traffic is still like the calibration images, in plain words."""

from html import escape
from math import exp

from service.dashboard import words
from service.dashboard.markup import RIGHT, banner, card, empty, facts, quiet, table
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State
from service.monitoring.snapshot import DriftAlarm, ModelMonitor, Snapshot

KINDS = {
    "flagged": ("Flagged too often", "/dashboard/classes"),
    "p_values": ("p-values not uniform", "/dashboard/"),
    "likelihood": ("Likelihood has moved", "/dashboard/classes"),
}
MOST_SPELT_OUT = 1e6
MOST_NATS = 700.0  # beyond, the exponential is none
EXPLANATION = (
    "Evidence is how much likelier the images seen are under a drift than under none. An alarm says that the traffic "
    "has changed, not why: a new camera and an attack look alike here. The review queue shows which inputs they are."
)


def register(state: State) -> None:
    add_page(state, "/drift", build)


def build(tab: Tab) -> None:
    html("<h1>Drift</h1>", classes="title")
    tab.live(verdict, role="status")
    tab.live(alarms)
    with element("div", "grid"):
        tab.live(calibration, classes="card")
        tab.live(method, classes="card")


def verdict(snapshot: Snapshot) -> str:
    number = sum(len(model.drift.alarms) for model in snapshot.models)
    if number:
        told, kind = f"{number} sign{'' if number == 1 else 's'} of traffic unlike the calibration images.", "bad"
    elif snapshot.level == "no traffic":
        told, kind = "There is no traffic to compare with the calibration images.", ""
    else:
        told, kind = "The traffic is like the calibration images, as far as can be told.", "good"
    return banner(told, kind)


def alarms(snapshot: Snapshot) -> str:
    rows = [_row(alarm, model) for model in snapshot.models for alarm in model.drift.alarms]
    if not rows:
        return ""
    columns = (("What", ""), ("In words", ""), ("Since", ""), ("Evidence", RIGHT))
    return f'<div class="card">{table(columns, rows, label="Signs of drift")}</div>'


def _row(alarm: DriftAlarm, model: ModelMonitor) -> tuple[str, ...]:
    title, link = KINDS[alarm.kind]
    odds = exp(min(alarm.evidence, MOST_NATS))
    return (
        f'<a href="{link}">{title}</a><br><span class="quiet small">{escape(model.name)}</span>',
        escape(alarm.words),
        f"{words.clock(alarm.since)}<br>"
        f'<span class="quiet small">for {words.duration(alarm.duration_seconds)}</span>',
        f"{words.count(odds)} : 1" if odds < MOST_SPELT_OUT else "over a million : 1",
    )


def calibration(snapshot: Snapshot) -> str:
    told = "".join(_calibration(model) for model in snapshot.models)
    return card("Calibration", told or empty("No model is loaded yet."))


def _calibration(model: ModelMonitor) -> str:
    told = model.calibration
    made = "the bundle does not say" if told.created is None else words.date(told.created)
    age = "" if told.age_seconds is None else f" ({words.duration(told.age_seconds)} ago)"
    return facts(
        {
            "Model": f"{escape(model.name)} <code>{escape(model.version)}</code>",
            "Calibrated": f"{made}{age}",
            "On": f"{words.count(told.num_images)} images",
            "Promise": f"at most {words.percent(model.promised_share)} of each class flagged",
        }
    )


def method(snapshot: Snapshot) -> str:
    told = "".join(
        f"<p>On traffic like the calibration images a day has a false alarm with at most "
        f"{words.percent(model.drift.false_alarms_a_day)} probability, over all kinds and "
        f"{model.drift.num_classes_tested} classes of {escape(model.name)}, however often one looks.</p>"
        for model in snapshot.models
    )
    return card("How it is told", told + quiet(EXPLANATION))
