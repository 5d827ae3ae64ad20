"""What every page has around it, and how its parts stay up to date."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.metadata import version

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui

from service.client.errors import ClientError
from service.dashboard import words
from service.dashboard.feed import Feed, Render
from service.dashboard.login import LOGOUT, STATIC
from service.dashboard.options import PREFIX
from service.dashboard.sessions import Session
from service.dashboard.state import State

CHECK_SECONDS = 15.0
RESPONSE_SECONDS = 15.0
Build = Callable[["Tab"], Awaitable[None] | None]

ICON = (
    '<svg viewBox="0 0 20 20" width="17" height="17" aria-hidden="true"><circle cx="10" cy="10" r="7.2" fill="none" '
    'stroke="currentColor" stroke-width="1.8"/><path d="M10 2.8a7.2 7.2 0 0 1 0 14.4z" fill="currentColor"/></svg>'
)
WAITING = '<div class="empty">Waiting for the service …</div>'
STALE = '<div class="banner bad"><div><p>{reason}</p><p class="quiet">{shown}</p></div></div>'


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A page as the navigation shows it; role: the least that may see it."""

    path: str
    title: str
    role: str = "review"


NAVIGATION = (
    Entry(path="/", title="Overview"),
    Entry(path="/classes", title="Classes"),
    Entry(path="/drift", title="Drift"),
    Entry(path="/review", title="Review"),
    Entry(path="/evaluation", title="Evaluation"),
    Entry(path="/playground", title="Playground", role="predict"),
    Entry(path="/about", title="About"),
)


class Tab:
    """One open page. Its live parts are sent again only when what they show has changed."""

    def __init__(self, state: State, session: Session):
        self.state, self.session = state, session
        self.client = ui.context.client
        self._parts: list[tuple[ui.html, Render]] = []
        self._trouble: ui.html | None = None

    def live(self, render: Render, *, classes: str = "", role: str | None = None) -> None:
        """A part of the page that follows the monitor."""
        self.follow()
        part = html("", classes=classes)
        if role is not None:
            part.props(f"role={role}")
        self._parts.append((part, render))
        self._refresh(part, render)

    def follow(self) -> None:
        """Here is told what is wrong with the monitor's stream, if anything is."""
        if self._trouble is not None:
            return
        self._trouble = html(_trouble(self.state.feed)).props("role=alert")
        feed = self.state.feed
        feed.subscribe(self._on_news, self.session)
        self.client.on_delete(lambda: feed.unsubscribe(self._on_news))

    def _on_news(self) -> None:
        assert self._trouble is not None
        self._trouble.content = _trouble(self.state.feed)
        for part, render in self._parts:
            self._refresh(part, render)

    def _refresh(self, part: ui.html, render: Render) -> None:
        feed = self.state.feed
        part.content = "" if feed.latest is None else feed.rendered(render)

    async def check(self, role: str) -> None:
        """A session that has ended, or may no longer see this page, closes its tabs."""
        try:
            is_open = await self.state.sessions.confirm(self.session)
        except ClientError:
            return
        if not is_open or not self.session.identity.may(role):
            self._close()

    def _close(self) -> None:
        """Also to who would not go."""
        self.client.open(f"{PREFIX}/")
        self.state.feed.unsubscribe(self._on_news)
        self.client.layout.clear()


def _trouble(feed: Feed) -> str:
    if feed.fault is not None:
        shown = "" if feed.received is None else f"Shown is what was at {words.clock(feed.received)}."
        return STALE.format(reason=escape(_sentence(feed.fault)), shown=shown)
    return WAITING if feed.latest is None else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def html(content: str, *, classes: str = "", tag: str = "div") -> ui.html:
    """Markup of our own making, in which every text from elsewhere is escaped already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


@contextmanager
def element(tag: str, classes: str = "", **attributes: str) -> Iterator[ui.element]:
    made = ui.element(tag).classes(classes)
    made.props.update(attributes)
    with made:
        yield made


def add_page(state: State, path: str, build: Build) -> None:
    """A page of the navigation, behind its role."""
    entry = next(entry for entry in NAVIGATION if entry.path == path)

    async def shown(request: Request) -> Response | None:
        session: Session = request.scope["state"]["session"]
        if not session.identity.may(entry.role):
            return RedirectResponse(f"{PREFIX}/playground")
        tab = Tab(state, session)
        with _frame(tab, entry):
            built = build(tab)
            if inspect.isawaitable(built):
                await built
        return None

    ui.page(path, title=f"{entry.title} · lgm-guard", response_timeout=RESPONSE_SECONDS)(shown)


@contextmanager
def _frame(tab: Tab, entry: Entry) -> Iterator[None]:
    tag = version("lgm-guard")
    ui.add_head_html(
        f'<link rel="stylesheet" href="{STATIC}dashboard.css?{tag}"><script src="{STATIC}theme.js?{tag}"></script>'
        f'<script src="{STATIC}session.js?{tag}"></script>'
    )
    with ui.header(fixed=False, wrap=False, add_scroll_padding=False).classes("top"):
        html(_top(tab.session, entry))
    with element("div", "page", id="content", tabindex="-1"):
        yield
    if tab.session.key is not None:
        ui.timer(CHECK_SECONDS, partial(tab.check, entry.role))


def _top(session: Session, current: Entry) -> str:
    links = "".join(
        f'<li><a href="{PREFIX}{entry.path}"{" aria-current=page" if entry is current else ""}>{entry.title}</a></li>'
        for entry in NAVIGATION
        if session.identity.may(entry.role)
    )
    name = session.identity.name
    out = f'<form method="post" action="{LOGOUT}"><button type="submit">Log out</button></form>'
    who = "" if name is None else f'<span class="quiet small">{escape(name)}</span>{out}'
    return (
        f'<a class="skip" href="#content">Skip to content</a><div class="inner">'
        f'<a class="brand" href="{PREFIX}/"><img src="{STATIC}icon.svg" alt="" width="24" height="24">lgm-guard</a>'
        f'<nav aria-label="Pages"><ul>{links}</ul></nav><div class="who">'
        f'<button type="button" class="icon" data-theme-toggle aria-label="Colours. Change">{ICON}</button>'
        f"{who}</div></div>"
    )
