"""What one server process holds while it runs."""

from dataclasses import dataclass, field

from service.engine import Engine
from service.errors import NotReadyError, UnknownModelError
from service.metrics import Metrics
from service.settings import Settings


@dataclass(kw_only=True, slots=True)
class Runtime:
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    engine: Engine | None = None
    draining: bool = False

    def active_engine(self) -> Engine:
        """The engine that answers now. Raises NotReadyError before it is loaded."""
        if self.engine is None:
            raise NotReadyError("the model is not loaded yet")
        return self.engine

    def engine_for(self, name: str | None = None, version: str | None = None) -> Engine:
        """The engine of a model, by default of the one that answers now. Raises UnknownModelError, NotReadyError."""
        engine = self.active_engine()
        if name not in (None, engine.name) or version not in (None, engine.version):
            asked = " ".join(part[:64] for part in (name, version) if part is not None)
            raise UnknownModelError(f"no model {asked!r} here; there is '{engine.name} {engine.version}'")
        return engine

    def check_ready(self) -> Engine:
        """Raises NotReadyError unless new traffic should be sent here."""
        if self.draining:
            raise NotReadyError("the service is shutting down")
        engine = self.active_engine()
        if not engine.alive:
            raise NotReadyError("the model's worker has stopped")
        return engine
