"""The pages, one a file."""

from service.dashboard.pages import about, classes, drift, evaluation, overview, playground, review
from service.dashboard.state import State


def register(state: State) -> None:
    for page in (overview, classes, drift, review, evaluation, playground, about):
        page.register(state)
