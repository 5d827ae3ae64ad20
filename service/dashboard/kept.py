"""What the service has kept for review, over its routes, with the key of whoever reviews."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.client.errors import AnswerError
from service.dashboard.sessions import Session
from service.dashboard.upstream import Service
from service.quarantine.records import TRANSITIONS, State

PATH = "/v1/quarantine"
IMAGE_TYPE = "image/png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    items: list[dict[str, Any]]
    next_cursor: str | None
    counts: Mapping[str, int]


class Kept:
    """Raises what Service does."""

    def __init__(self, service: Service, session: Session):
        self._service, self._key = service, session.key
        # Without keys the service names callers by their addresses, and would know this process alone.
        self._sender = {} if session.address is None else {"x-forwarded-for": session.address.encode("latin-1")}

    async def list(self, **asked: str | int | None) -> Listing:
        given = {name: value for name, value in asked.items() if value not in (None, "")}
        raw = await self._service.json(PATH, key=self._key, params=given)
        try:
            return Listing(items=list(raw["items"]), next_cursor=raw["next_cursor"], counts=dict(raw["counts"]))
        except (KeyError, TypeError) as error:
            raise AnswerError(f"{PATH} answered not as lgm-guard does ({error})") from None

    async def get(self, item_id: str) -> dict[str, Any]:
        item: dict[str, Any] = await self._service.json(_path(item_id), key=self._key)
        return item

    async def image(self, item_id: str) -> bytes:
        return (await self._service.ask("GET", f"{_path(item_id)}/image", key=self._key)).content

    async def review(self, item: Mapping[str, Any], state: State, *, reason: str | None) -> dict[str, Any]:
        """The item after it; refused with 412 where it has changed since it was looked at."""
        response = await self._service.ask(
            "PATCH",
            _path(item["id"]),
            key=self._key,
            headers={"if-match": f'"{item["revision"]}"', **self._sender},
            json={"state": state, "reason": reason},
        )
        reviewed: dict[str, Any] = response.json()
        return reviewed

    @staticmethod
    def way(before: State, after: State) -> tuple[State, ...]:
        """The states through which one gets from one to another; a verdict is left through a new review."""
        if before == after:
            return ()
        if after in TRANSITIONS[before]:
            return (after,)
        return (State.IN_REVIEW, after)


def _path(item_id: str) -> str:
    return f"{PATH}/{quote(item_id, safe='')}"
