"""What one server process holds while it runs."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from service.access import Access
from service.dashboard.parent import Dashboard
from service.engine import Engine
from service.errors import NotReadyError, UnknownItemError, UnknownModelError
from service.flight import Flight, flight_of, oversight_of
from service.judgements import Floats, Judgements
from service.metrics import Metrics
from service.monitoring.monitor import Monitor
from service.monitoring.pulse import Pulse
from service.monitoring.traffic import Traffic
from service.quarantine.assembly import Ward, ward_of
from service.quarantine.quarantine import Quarantine
from service.rate_limit import RateLimiter
from service.refusals import Refusals
from service.registry import Registry
from service.settings import Settings
from service.shared_rate_limit import limiter_of
from service.tracing import Spans, spans_of

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(kw_only=True, slots=True)
class Runtime:
    """Shared by HTTP and gRPC: a caller passes one door and has one allowance. Raises KeyFileError, SettingsError."""

    settings: Settings
    refusals: Refusals = field(default_factory=Refusals)
    traffic: Traffic = field(default_factory=Traffic)
    metrics: Metrics = field(init=False)
    registry: Registry = field(init=False)
    pulse: Pulse = field(init=False)
    access: Access = field(init=False)
    flight: Flight = field(init=False)
    oversight: Flight = field(init=False)
    limiter: RateLimiter | None = field(init=False)
    spans: Spans | None = field(init=False)
    dashboard: Dashboard | None = field(init=False)
    ward: Ward | None = field(init=False)
    loading: asyncio.Task[None] | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(withholds_flagged=self.settings.policy == "withhold")
        self.registry = Registry(self.settings, self.metrics, self.traffic)
        monitor = Monitor(self.settings, self.registry, self.traffic, self.metrics)
        self.pulse = Pulse(monitor, is_ready=self.is_ready)
        self.access = Access.of(self.settings)
        self.flight = flight_of(self.settings)
        self.oversight = oversight_of(self.settings)
        self.limiter = limiter_of(self.settings, self.metrics)
        self.spans = spans_of(self.settings)
        self.dashboard = Dashboard(self.settings) if self.settings.dashboard else None
        self.ward = ward_of(self.settings, self.metrics)

    def start(self) -> None:
        """Begin to load the default model; meanwhile the process is alive and not ready."""
        self.loading = asyncio.create_task(self.registry.load_default())
        if self.ward is not None:
            self.ward.writer.start()
        self.pulse.start()

    async def close(self) -> None:
        """Answer all that was taken and end every worker."""
        self.draining = True
        await self.close_dashboard()
        if self.loading is not None:
            self.loading.cancel()
            with suppress(BaseException):  # whoever started it has been told
                await self.loading
        await self.pulse.stop()
        await self.registry.close()
        if self.limiter is not None:
            await self.limiter.close()
        if self.ward is not None:
            await asyncio.to_thread(self.ward.close)

    async def ask_quarantine(
        self,
        call: Callable[Concatenate[Quarantine, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Off the event loop. Raises what the call raises, QuarantineUnavailableError, and UnknownItemError where
        nothing is kept.
        """
        if self.ward is None:
            raise UnknownItemError("nothing is kept here: the setting quarantine is off")
        return await self.ward.threads.run(call, self.ward.quarantine, *args, **kwargs)

    def offer(self, engine: Engine, images: Floats, judgements: Judgements, state: Mapping[str, Any]) -> None:
        """Let the quarantine have what it keeps of images that were judged; state is the request's."""
        if self.ward is not None:
            self.ward.capture.offer(engine, images, judgements, state)

    async def close_dashboard(self) -> None:
        """End the page's process; what its tabs hold open ends with it."""
        if self.dashboard is not None:
            await self.dashboard.close()

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
