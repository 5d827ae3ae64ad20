"""What one server process holds while it runs."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from service.access import Access
from service.engine import Engine
from service.errors import NotReadyError, UnknownModelError
from service.flight import Flight, flight_of
from service.metrics import Metrics
from service.monitoring.monitor import Monitor
from service.monitoring.pulse import Pulse
from service.monitoring.traffic import Traffic
from service.rate_limit import RateLimiter, limiter_of
from service.refusals import Refusals
from service.registry import Registry
from service.settings import Settings
from service.tracing import Spans, spans_of


@dataclass(kw_only=True, slots=True)
class Runtime:
    """Shared by HTTP and gRPC: a caller passes one door and has one allowance. Raises KeyFileError, SettingsError."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    traffic: Traffic = field(default_factory=Traffic)
    refusals: Refusals = field(default_factory=Refusals)
    registry: Registry = field(init=False)
    pulse: Pulse = field(init=False)
    access: Access = field(init=False)
    flight: Flight = field(init=False)
    limiter: RateLimiter | None = field(init=False)
    spans: Spans | None = field(init=False)
    loading: asyncio.Task[None] | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        self.registry = Registry(self.settings, self.metrics, self.traffic)
        monitor = Monitor(self.settings, self.registry, self.traffic, self.metrics)
        self.pulse = Pulse(monitor, is_ready=self.is_ready)
        self.access = Access.of(self.settings)
        self.flight = flight_of(self.settings)
        self.limiter = limiter_of(self.settings)
        self.spans = spans_of(self.settings)

    def start(self) -> None:
        """Begin to load the default model; meanwhile the process is alive and not ready."""
        self.loading = asyncio.create_task(self.registry.load_default())
        self.pulse.start()

    async def close(self) -> None:
        """Answer all that was taken and end every worker."""
        self.draining = True
        if self.loading is not None:
            self.loading.cancel()
            with suppress(BaseException):  # whoever started it has been told
                await self.loading
        await self.pulse.stop()
        await self.registry.close()

    def engine_for(self, name: str | None = None, version: str | None = None) -> Engine:
        """A loaded version; by default the default model's active one. Raises UnknownModelError, NotReadyError."""
        return self.registry.engine_for(name, version)

    def request_answered(self, route: str, status: int | str, seconds: float) -> None:
        """status: HTTP's number, or gRPC's name."""
        self.metrics.request_answered(route, status, seconds)
        self.traffic.request_answered(route, status, seconds)

    def is_ready(self) -> bool:
        try:
            self.check_ready()
        except (NotReadyError, UnknownModelError):
            return False
        return True

    def check_ready(self) -> Engine:
        """Raises NotReadyError unless new traffic should be sent here."""
        if self.draining:
            raise NotReadyError("the service is shutting down")
        engine = self.engine_for()
        if not engine.alive:
            raise NotReadyError("the model's worker is being restarted")
        return engine
