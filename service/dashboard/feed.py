"""The monitor's stream: one subscription for all tabs, as long as there is a tab, with the key of one who may."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import ValidationError

from service.client.errors import ClientError, ProblemError
from service.dashboard.sessions import Session
from service.dashboard.upstream import Service
from service.monitoring.snapshot import Snapshot

logger = logging.getLogger(__name__)
STREAM = "/v1/monitor/stream"
AGAIN_SECONDS = 1.0
Render = Callable[[Snapshot], str]


class Feed:
    """`latest` is the newest snapshot, `fault` why there are no newer ones."""

    def __init__(self, service: Service):
        self._service = service
        self._tabs: dict[Callable[[], None], Session] = {}
        self._task: asyncio.Task[None] | None = None
        self._rendered: dict[Render, str] = {}
        self.latest: Snapshot | None = None
        self.received: datetime | None = None
        self.fault: str | None = None

    def subscribe(self, on_news: Callable[[], None], session: Session) -> None:
        self._tabs[on_news] = session
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    def unsubscribe(self, on_news: Callable[[], None]) -> None:
        self._tabs.pop(on_news, None)
        if not self._tabs and self._task is not None:
            self._task.cancel()
            self._task = self.latest = None  # who comes next is not shown old news
            self._rendered.clear()

    def rendered(self, render: Render) -> str:
        """What a part of a page shows of the latest snapshot, made once for all tabs."""
        assert self.latest is not None
        if render not in self._rendered:
            self._rendered[render] = render(self.latest)
        return self._rendered[render]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            key = next(iter(self._tabs.values())).key
            try:
                async with self._service.events(STREAM, key=key) as events:
                    async for data in events:
                        self._take(data)
                self._fail("the service has ended the stream")
            except ProblemError as error:
                self._drop_key(key, error)
            except ClientError as error:
                self._fail(str(error))
            await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, data: str) -> None:
        try:
            self.latest = Snapshot.model_validate_json(data)
        except ValidationError as error:
            self._fail("the service's version is another one than this page's")
            logger.error("a snapshot was not understood: %s", error.errors(include_url=False)[0])
            return
        self._rendered.clear()
        self.received, self.fault = datetime.now(UTC), None
        self._tell()

    def _drop_key(self, key: str | None, error: ProblemError) -> None:
        """Another tab's key comes next: this one may have been revoked."""
        for tab, session in list(self._tabs.items()):
            if session.key == key:
                self._tabs[tab] = self._tabs.pop(tab)  # to the end
        self._fail(error.problem.detail)

    def _fail(self, reason: str) -> None:
        self.fault = reason
        self._tell()

    def _tell(self) -> None:
        for on_news in tuple(self._tabs):
            on_news()
