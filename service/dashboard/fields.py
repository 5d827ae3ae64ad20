"""Form fields and buttons that tell the server what was chosen."""

from collections.abc import Callable
from html import escape
from typing import Any

from nicegui import ui

from service.dashboard.shell import element, html

Chosen = Callable[[str, str], Any]  # told the field's name and its value


def choice(title: str, name: str, values: dict[str, str], on_change: Chosen) -> ui.html:
    with element("div"):
        html(f'<label for="{name}">{title}</label>')
        chosen = html(options(values, next(iter(values))), tag="select")
        chosen.props.update({"id": name})
        chosen.on(
            "change",
            lambda event: on_change(name, str(event.args)),
            js_handler="(event) => emit(event.target.value)",
        )
    return chosen


def options(values: dict[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(title)}</option>'
        for value, title in values.items()
    )


def field(title: str, name: str, on_change: Chosen, *, keyboard: str = "text") -> None:
    """keyboard: of a phone, as HTML's inputmode names it."""
    with element("div"):
        html(f'<label for="{name}">{title}</label>')
        made = ui.element("input")
        made.props.update({"id": name, "type": "text", "inputmode": keyboard, "size": "8", "autocomplete": "off"})
        made.on(
            "change",
            lambda event: on_change(name, str(event.args).strip()),
            js_handler="(event) => emit(event.target.value)",
        )


def button(label: str, on_click: Callable[[], Any]) -> ui.element:
    button = ui.element("button").props("type=button").on("click", on_click)
    with button:
        html(label, tag="span")
    return button
