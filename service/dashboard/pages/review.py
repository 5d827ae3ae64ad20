"""To come."""

from service.dashboard.shell import Tab, add_page, html
from service.dashboard.state import State


def register(state: State) -> None:
    add_page(state, "/review", build)


def build(tab: Tab) -> None:
    html("<h1>Review</h1>", classes="title")
