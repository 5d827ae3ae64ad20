"""What one server process holds while it runs."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from service.access import Access
from service.dashboard.parent import Dashboard
from service.engine import Engine
from service.errors import NotReadyError
from service.flight import Flight, flight_of
from service.metrics import Metrics
from service.rate_limit import RateLimiter, limiter_of
from service.registry import Registry
from service.settings import Settings
from service.tracing import Spans, spans_of


@dataclass(kw_only=True, slots=True)
class Runtime:
    """Shared by HTTP and gRPC: a caller passes one door and has one allowance. Raises KeyFileError, SettingsError."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    registry: Registry = field(init=False)
    access: Access = field(init=False)
    flight: Flight = field(init=False)
    limiter: RateLimiter | None = field(init=False)
    spans: Spans | None = field(init=False)
    dashboard: Dashboard | None = field(init=False)
    loading: asyncio.Task[None] | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        self.registry = Registry(self.settings, self.metrics)
        self.access = Access.of(self.settings)
        self.flight = flight_of(self.settings)
        self.limiter = limiter_of(self.settings)
        self.spans = spans_of(self.settings)
        self.dashboard = Dashboard(self.settings) if self.settings.dashboard else None

    def start(self) -> None:
        """Begin to load the default model; meanwhile the process is alive and not ready."""
        self.loading = asyncio.create_task(self.registry.load_default())

    async def close(self) -> None:
        """Answer all that was taken and end every worker."""
        self.draining = True
        await self.close_dashboard()
        if self.loading is not None:
            self.loading.cancel()
            with suppress(BaseException):  # whoever started it has been told
                await self.loading
        await self.registry.close()

    async def close_dashboard(self) -> None:
        """End the page's process; what its tabs hold open ends with it."""
        if self.dashboard is not None:
            await self.dashboard.close()

    def engine_for(self, name: str | None = None, version: str | None = None) -> Engine:
        """A loaded version; by default the default model's active one. Raises UnknownModelError, NotReadyError."""
        return self.registry.engine_for(name, version)

    def check_ready(self) -> Engine:
        """Raises NotReadyError unless new traffic should be sent here."""
        if self.draining:
            raise NotReadyError("the service is shutting down")
        engine = self.engine_for()
        if not engine.alive:
            raise NotReadyError("the model's worker is being restarted")
        return engine
