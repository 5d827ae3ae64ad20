"""The review of what was kept: thumbnails, one input in full, and what it was by one key."""

from fastapi import Request, Response
from nicegui import app as nicegui_app
from nicegui import ui

from service.client.errors import ClientError, ProblemError
from service.dashboard.kept import IMAGE_TYPE, Kept
from service.dashboard.pages.desk import Desk
from service.dashboard.sessions import Session
from service.dashboard.shell import Tab, add_page, html
from service.dashboard.state import State as Process


def register(state: Process) -> None:
    add_page(state, "/review", build)

    @nicegui_app.get("/kept/{item_id}/image")
    async def image(request: Request, item_id: str) -> Response:
        """The service's answer, asked with the key of whoever looks."""
        session: Session = request.scope["state"]["session"]
        try:
            data = await Kept(state.service, session).image(item_id)
        except ProblemError as error:
            return Response(status_code=error.problem.status)
        except ClientError:
            return Response(status_code=502)
        return Response(data, media_type=IMAGE_TYPE)


def build(tab: Tab) -> None:
    html("<h1>Review</h1>", classes="title")
    desk = Desk(tab)
    desk.place()
    ui.timer(0, desk.load, once=True)
