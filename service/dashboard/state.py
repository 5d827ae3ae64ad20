"""What one page process holds."""

from dataclasses import dataclass

from service.dashboard.feed import Feed
from service.dashboard.laboratory import Laboratory
from service.dashboard.options import Options
from service.dashboard.sessions import Sessions
from service.dashboard.upstream import Service


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    options: Options
    service: Service
    sessions: Sessions
    feed: Feed
    laboratory: Laboratory

    async def close(self) -> None:
        await self.feed.close()
        await self.service.close()
        self.laboratory.close()
