"""One reviewer's desk: the list, the input that is looked at, and what can be undone."""

import asyncio
import base64
from collections import Counter
from contextlib import suppress
from functools import partial
from html import escape
from http import HTTPStatus
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments, KeyEventArguments

from service.client.errors import ClientError, ProblemError
from service.dashboard.fields import button, choice, field, options
from service.dashboard.findings import Experiment
from service.dashboard.kept import Kept
from service.dashboard.laboratory import ExperimentError
from service.dashboard.pages.kept_items import TITLES, WHY, detail, nearest, thumbnail
from service.dashboard.shell import Tab, element, html
from service.quarantine.records import State

PAGE_SIZE = 24
FIELDS = {"label": "Label", "p_value_at_most": "p-value at most"}
SETTLE_SECONDS = 0.15  # whoever runs through the queue waits for no network
DECISIONS = (
    ("a", State.CONFIRMED_ADVERSARIAL, "Adversarial"),
    ("b", State.ABNORMAL, "Abnormal"),
    ("f", State.FALSE_POSITIVE, "False positive"),
    ("r", State.RELEASED, "Release"),
    ("i", State.IN_REVIEW, "In review"),
)
# Where one column holds both, as in dashboard.css, the input is below all thumbnails.
SCROLL = 'if (matchMedia("(max-width: 860px)").matches) document.getElementById("input").scrollIntoView()'
# Told before anything is sent: on the way there a verdict is left first.
NOT_FLAGGED = "It was not flagged, so it is no false positive; released says that it is ordinary."
LEGEND = (
    ("j", "next"),
    ("k", "previous"),
    *((key, name.lower()) for key, _, name in DECISIONS),
    ("u", "undo"),
    ("n", "reload"),
)


class Desk:
    """One reviewer's list, the item that is looked at, and what can be undone."""

    def __init__(self, tab: Tab):
        self._tab = tab
        self._kept = Kept(tab.state.service, tab.session)
        self._filter: dict[str, str] = {"state": State.NEW}
        self._cursor: str | None = None
        self._items: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._next: str | None = None
        self._position = 0
        self._thumbnails: list[tuple[ui.element, ui.html]] = []
        self._done: list[tuple[dict[str, Any], dict[str, Any]]] = []  # each before and after
        self._reason = ""
        self._busy = asyncio.Lock()
        self._looking: asyncio.Task[None] = asyncio.create_task(asyncio.sleep(0))

    def place(self) -> None:
        with element("section", "card", **{"aria-label": "Filters"}), element("div", "filters"):
            self._states = choice("State", "state", {State.NEW: "new"}, self._filtered)
            choice("Kept because", "why", WHY, self._filtered)
            field(FIELDS["label"], "label", self._filtered)
            field(FIELDS["p_value_at_most"], "p_value_at_most", self._filtered, keyboard="decimal")
        self._message = html("").props("role=status")
        with element("div", "review"):
            with element("section", "card", **{"aria-label": "Inputs"}):
                self._head = html("")
                self._list = ui.element("ul").classes("items")
                with element("div", "actions"):
                    self._older = button("Older", self.older)
                    button("Newest", self.newest)
            with element("section", "card", **{"id": "input", "aria-label": "Input"}):
                self._detail = html("")
                with element("div") as self._tools:
                    self._place_reason()
                    with element("div", "actions"):
                        self._offered = {
                            wanted: button(f"{name} <kbd>{key}</kbd>", partial(self.decide, wanted))
                            for key, wanted, name in DECISIONS
                        }
                        button("Undo <kbd>u</kbd>", self.undo)
                self._nearest = html("")
        legend = "".join(f"<li><kbd>{key}</kbd> {what}</li>" for key, what in LEGEND)
        html(f'<h2 class="visually-hidden">Keys</h2><ul class="keys">{legend}</ul>')
        ui.keyboard(on_key=self._press, ignore=["input", "select", "textarea"])

    async def load(self) -> None:
        try:
            listing = await self._kept.list(**self._filter, cursor=self._cursor, limit=PAGE_SIZE)
        except ClientError as error:
            return self._say(_reason_of(error), bad=True)
        self._items, self._next, self._position = listing.items, listing.next_cursor, 0
        self._counts = Counter(listing.counts)
        self._say("")
        self._show_list()
        await self._show_item()

    async def older(self) -> None:
        if self._next is not None:
            self._cursor = self._next
            await self.load()

    async def newest(self) -> None:
        self._cursor = None
        await self.load()

    async def decide(self, wanted: State) -> None:
        """Say what the input was and go to the next one."""
        async with self._busy:
            if not self._items:
                return
            item, position = self._items[self._position], self._position
            if wanted is State.FALSE_POSITIVE and not item["flagged"]:
                return self._say(NOT_FLAGGED, bad=True)
            reviewed = await self._review(item, wanted)
            if reviewed is None:
                return
            self._done.append((item, reviewed))
            self._replace(position, reviewed)
            self._say(f"{escape(item['label'])} {TITLES[wanted][0]}. <kbd>u</kbd> takes it back.")
            self._clear_reason()
        if wanted is not State.IN_REVIEW:
            await self.go(1)
        else:
            await self._show_item()

    async def undo(self) -> None:
        async with self._busy:
            if not self._done:
                return self._say("There is nothing to undo.")
            before, after = self._done.pop()
            undone = await self._review(after, State(before["state"]))
            if undone is None:
                return
            # What was decided before that is now to be taken back from here.
            self._done = [(first, undone if _is_same(then, before) else then) for first, then in self._done]
            if not self._put(undone):
                self._count(after, undone)
            self._say(f"{escape(undone['label'])} is {TITLES[State(undone['state'])][0]} again.")
        await self._show_item()

    async def go(self, steps: int) -> None:
        if self._items:
            self._position = min(len(self._items) - 1, max(0, self._position + steps))
            await self._show_item()

    async def _review(self, item: dict[str, Any], wanted: State) -> dict[str, Any] | None:
        """The item after its reviews; None where it was refused, with the reason told."""
        reason = self._reason or None
        try:
            for state in self._kept.way(State(item["state"]), wanted):
                item = await self._kept.review(item, state, reason=reason)
        except ClientError as error:
            self._say(_reason_of(error), bad=True)
            with suppress(ClientError):
                item = await self._kept.get(item["id"])
            self._put(item)
            await self._show_item()
            return None
        return item

    def _put(self, item: dict[str, Any]) -> bool:
        """In its place in the list, which is gone to; whether it has one."""
        position = next((at for at, one in enumerate(self._items) if one["id"] == item["id"]), None)
        if position is None:
            return False
        self._position = position
        self._replace(position, item)
        return True

    def _place_reason(self) -> None:
        def keep(event: GenericEventArguments) -> None:
            self._reason = str(event.args).strip()

        html('<label for="reason">Reason <span class="quiet">(optional)</span></label>')
        made = ui.element("input")
        made.props.update({"id": "reason", "type": "text", "maxlength": "2000", "autocomplete": "off"})
        made.on("input", keep, throttle=0.2, js_handler="(event) => emit(event.target.value)")

    def _clear_reason(self) -> None:
        self._reason = ""
        self._tab.client.run_javascript('document.getElementById("reason").value = ""')

    def _replace(self, position: int, item: dict[str, Any]) -> None:
        self._count(self._items[position], item)
        self._items[position] = item
        self._thumbnails[position][1].content = thumbnail(item)

    def _count(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self._counts[before["state"]] -= 1
        self._counts[after["state"]] += 1
        self._show_counts()

    def _show_counts(self) -> None:
        self._states.content = options(
            {"": "any", **{state: f"{TITLES[state][0]} ({self._counts[state]})" for state in State}},
            self._filter["state"],
        )

    def _show_list(self) -> None:
        self._list.clear()
        self._thumbnails = []
        with self._list:
            for position, item in enumerate(self._items):
                with ui.element("li"):
                    thumb = ui.element("button").props("type=button")
                    thumb.on("click", partial(self._choose, position))
                    with thumb:
                        self._thumbnails.append((thumb, html(thumbnail(item), tag="span")))
        self._older.props.update({"disabled": self._next is None})
        self._show_counts()
        shown = len(self._items)
        self._head.content = (
            f'<div class="head"><h2>Inputs</h2><span class="unit">{shown} shown, newest first</span></div>'
        )
        if not shown:
            self._head.content += (
                '<div class="empty">Nothing here. What is flagged is kept and shows up on a reload (n).</div>'
            )

    async def _choose(self, position: int) -> None:
        self._position = position
        await self._show_item()
        self._tab.client.run_javascript(SCROLL)

    async def _show_item(self) -> None:
        for position, (thumb, _) in enumerate(self._thumbnails):
            thumb.props["aria-current"] = "true" if position == self._position else "false"
            thumb.update()
        self._tools.set_visibility(bool(self._items))
        self._nearest.content = ""
        if not self._items:
            self._detail.content = '<div class="empty">No input is chosen.</div>'
            return
        item = self._items[self._position]
        self._detail.content = detail(item)
        self._offered[State.FALSE_POSITIVE].set_visibility(item["flagged"])
        self._looking.cancel()
        self._looking = asyncio.create_task(self._look_near(item))

    async def _look_near(self, item: dict[str, Any]) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        self._nearest.content = await self._near(item)

    async def _near(self, item: dict[str, Any]) -> str:
        laboratory = self._tab.state.laboratory
        bundle = laboratory.bundle_of(item["model_name"], item["model_version"])
        if bundle is None or item["media_type"] is None:
            return ""
        try:
            image = base64.b64encode(await self._kept.image(item["id"])).decode()
            return nearest(await laboratory.perform(Experiment(bundle=bundle, image=image, eps=0)))
        except (ClientError, ExperimentError):
            return ""

    async def _filtered(self, name: str, value: str) -> None:
        self._filter.pop(name, None)
        if value:
            self._filter[name] = value
        self._filter.setdefault("state", "")
        self._cursor = None
        await self.load()

    async def _press(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        pressed = event.key.name
        steps = {"j": 1, "k": -1}
        if pressed in steps:
            return await self.go(steps[pressed])
        for key, wanted, _ in DECISIONS:
            if pressed == key and not event.action.repeat:
                return await self.decide(wanted)
        if pressed == "u" and not event.action.repeat:
            await self.undo()
        elif pressed == "n":
            await self.load()

    def _say(self, text: str, *, bad: bool = False) -> None:
        self._message.content = f'<p class="{"fault" if bad else "quiet"}">{text}</p>' if text else ""


def _is_same(item: dict[str, Any], other: dict[str, Any]) -> bool:
    """Also in its revision."""
    return (item["id"], item["revision"]) == (other["id"], other["revision"])


def _reason_of(error: ClientError) -> str:
    """With the fields by the names that they have here."""
    if not isinstance(error, ProblemError):
        return escape(str(error))
    if error.problem.status == HTTPStatus.PRECONDITION_FAILED:
        return "Somebody else has reviewed it meanwhile; it is left as it is."
    told = [f"{FIELDS.get(fault.field, fault.field)}: {fault.detail}" for fault in error.problem.errors]
    return escape("; ".join(told) or error.problem.detail)
