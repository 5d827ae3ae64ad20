"""What runs here, and what its limits are."""

from html import escape
from typing import Any

from service.client.answers import Versions
from service.client.errors import ClientError
from service.dashboard import words
from service.dashboard.shell import Tab, add_page, card, element, html
from service.dashboard.state import State
from service.monitoring.snapshot import Snapshot

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
    with element("div", "grid wide"):
        tab.live(process, classes="card")
        html(models(versions), classes="card")
        html(settings(about), classes="card")


def process(snapshot: Snapshot) -> str:
    facts = {
        "Service": f"lgm-guard {snapshot.service_version}",
        "State": "ready" if snapshot.ready else "not ready",
        "Up for": words.duration(snapshot.uptime_seconds),
        "Device": snapshot.device,
        "Precision": snapshot.precision,
        "Queue": f"{words.count(snapshot.queue_capacity)} images",
    }
    told = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return card("Process", f'<dl class="facts">{told}</dl>')


def models(versions: Versions) -> str:
    rows = "".join(
        f'<tr><td>{escape(model.name)}</td><td><code>{escape(one.version)}</code></td>'
        f'<td><span class="tag {STATES[one.state]}">{one.state}</span></td>'
        f'<td class="right">{words.percent(one.accuracy, 2)}</td><td class="right">{words.percent(one.false_alarm_rate)}</td></tr>'
        for model in versions.models
        for one in model.versions
    )
    refused = "".join(
        f'<p class="fault small">{escape(folder)}: {escape(reason)}</p>' for folder, reason in versions.refused.items()
    )
    head = (
        "<thead><tr><th scope=col>Model</th><th scope=col>Version</th><th scope=col>State</th>"
        '<th scope=col class="right">Accuracy</th><th scope=col class="right">Promise</th></tr></thead>'
    )
    table = f'<div class="scroll" tabindex="0" role="region" aria-label="Versions"><table>{head}<tbody>{rows}</tbody></table></div>'
    return card("Versions", table + refused)


def settings(about: dict[str, Any]) -> str:
    told = "".join(
        f"<dt>{escape(name.removesuffix('_bytes').removesuffix('_seconds').replace('_', ' '))}</dt><dd>{escape(_value(name, value))}</dd>"
        for name, value in about["settings"].items()
    )
    return card("Settings and limits", f'<dl class="facts">{told}</dl>')


def _value(name: str, value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return words.size(value)
    if name in ("rate_limit", "max_in_flight_per_key") and value == 0:
        return "unlimited"
    return f"{value:g} s" if name.endswith("_seconds") else words.count(value)
