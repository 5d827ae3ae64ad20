"""What runs here, and what its limits are."""

from html import escape
from typing import Any

from service.client.answers import Versions
from service.client.errors import ClientError
from service.dashboard import words
from service.dashboard.markup import RIGHT, card, facts, table, tag
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State
from service.monitoring.snapshot import Snapshot

UNLIMITED = ("rate_limit", "max_in_flight_per_key")  # where zero says so
STATES = {"active": "good", "loaded": "", "available": ""}


def register(state: State) -> None:
    add_page(state, "/about", build)


async def build(tab: Tab) -> None:
    html("<h1>About</h1>", classes="title")
    service, key = tab.state.service, tab.session.key
    try:
        versions = Versions.read(await service.json("/v1/models", key=key))
        about = await service.json("/v1/about", key=key)
    except ClientError as error:
        html(f'<p class="fault" role="alert">{escape(str(error))}</p>')
        return
    tab.follow()
    with element("div", "grid wide"):
        with element("div", "stack"):
            tab.live(process, classes="card")
            html(models(versions), classes="card")
        html(settings(about), classes="card")


def process(snapshot: Snapshot) -> str:
    told = {
        "Service": f"lgm-guard {snapshot.service_version}",
        "State": "ready" if snapshot.ready else "not ready",
        "Up for": words.duration(snapshot.uptime_seconds),
        "Device": snapshot.device,
        "Precision": snapshot.precision,
        "Queue": f"{words.count(snapshot.queue_capacity)} images",
    }
    return card("Process", facts({name: escape(value) for name, value in told.items()}))


def models(versions: Versions) -> str:
    rows = [
        (
            escape(model.name),
            f"<code>{escape(one.version)}</code>",
            tag(one.state, STATES[one.state]),
            words.percent(one.accuracy, 2),
            words.percent(one.false_alarm_rate),
        )
        for model in versions.models
        for one in model.versions
    ]
    refused = "".join(
        f'<p class="fault small">{escape(folder)}: {escape(reason)}</p>'
        for folder, reason in versions.refused.items()
    )
    columns = (("Model", ""), ("Version", ""), ("State", ""), ("Accuracy", RIGHT), ("Promise", RIGHT))
    return card("Versions", table(columns, rows, label="Versions") + refused)


def settings(about: dict[str, Any]) -> str:
    told = {_name(name): escape(_value(name, value)) for name, value in about["settings"].items()}
    return card("Settings and limits", facts(told))


def _name(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _value(name: str, value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return words.size(value)
    if name in UNLIMITED and value == 0:
        return "unlimited"
    return f"{value:g} s" if name.endswith("_seconds") else words.count(value)
