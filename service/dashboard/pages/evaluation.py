"""To come."""

from service.dashboard.shell import Tab, add_page, html
from service.dashboard.state import State


def register(state: State) -> None:
    add_page(state, "/evaluation", build)


def build(tab: Tab) -> None:
    html("<h1>Evaluation</h1>", classes="title")
