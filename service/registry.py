"""The versions that are here: which are loaded, which of a name's versions answers, and which did before."""

import asyncio
import itertools
import logging
import math
from pathlib import Path

from model.errors import LGMGuardError
from service.engine import Engine
from service.errors import ActivationError, NotReadyError, UnknownModelError
from service.metrics import Metrics
from service.monitoring.traffic import Traffic
from service.offers import Key, Offers, find_offers
from service.settings import Settings

logger = logging.getLogger(__name__)


class Registry:
    """Engines by name and version. Switching is one assignment, so no request ever sees half of it.

    Its tables are never changed but replaced by one assignment: any thread may read them, as metrics do.
    """

    def __init__(self, settings: Settings, metrics: Metrics, traffic: Traffic):
        self._settings = settings
        self._metrics = metrics
        self._traffic = traffic
        self._engines: dict[Key, Engine] = {}
        self._active: dict[str, str] = {}
        self._former: dict[str, str] = {}
        self._default: str | None = None
        self._loading = asyncio.Lock()  # one at a time, and no unloading meanwhile; switching waits for none
        self._activating: set[tuple[str, int]] = set()
        self._numbers = itertools.count()
        metrics.queue_depth.set_function(lambda: sum(engine.depth for engine in self._engines.values()))
        metrics.worker_up.set_function(lambda: sum(engine.num_workers for engine in self._engines.values()))

    async def load_default(self) -> None:
        """Load and activate the bundle of the settings. Raises BundleError, SettingsError, WorkerDiedError."""
        async with self._loading:
            engine = await self._load_folder(self._settings.bundle)
            self._default = engine.name
            self._switch(engine)

    def engine_for(self, name: str | None = None, version: str | None = None) -> Engine:
        """A loaded version; by default the default model's active one.

        Raises UnknownModelError, and NotReadyError for whatever name until the default model is loaded: its name is
        not known before, and who is told that a model is unknown does not come back.
        """
        if self._default is None:
            raise NotReadyError("the model is not loaded yet")
        name = self._default if name is None else name
        version = self._active.get(name) if version is None else version
        engine = self._engines.get((name, version or ""))
        if engine is None:
            raise UnknownModelError(f"{self._why_none(name, version)}; GET /v1/models tells what there is")
        return engine

    def _why_none(self, name: str, version: str | None) -> str:
        if version is None and self.versions(name):
            return f"no version of the model {name!r} is active here"
        return f"no model {(name if version is None else f'{name} {version}')[:128]!r} is loaded here"

    def active_engines(self) -> list[Engine]:
        """The one that answers of each name, the default name's first."""
        names = sorted(self._active, key=lambda name: (name != self._default, name))
        keys = [(name, self._active[name]) for name in names]
        return [self._engines[key] for key in keys if key in self._engines]

    def versions(self, name: str) -> list[str]:
        """Those loaded of a name, the active one first."""
        loaded = sorted(version for known, version in self._engines if known == name)
        return sorted(loaded, key=lambda version: not self.is_active(name, version))

    def is_default(self, name: str) -> bool:
        return name == self._default

    def is_active(self, name: str, version: str) -> bool:
        return self._active.get(name) == version

    def is_loaded(self, name: str, version: str) -> bool:
        return (name, version) in self._engines

    async def offers(self) -> Offers:
        """What could be loaded, read anew from the settings' folders."""
        return await asyncio.to_thread(find_offers, self._settings)

    async def load(self, name: str, version: str) -> Engine:
        """Make a version ready beside the others. Raises UnknownModelError, ActivationError with file and reason."""
        loaded = self._engines.get((name, version))
        if loaded is not None:
            return loaded
        async with self._loading:
            return await self._load(name, version)

    async def activate(self, name: str, version: str) -> Engine:
        """Let it answer for its name, at once where it is loaded. Raises as load does; then the former serves on.

        Raises ActivationError, too, where a later request for the name was quicker: the last one decides.
        """
        asked = name, next(self._numbers)
        self._activating.add(asked)
        try:
            engine = await self.load(name, version)
            if asked not in self._activating:
                raise ActivationError(f"{name} {version} is loaded, but was called off meanwhile; activate it again")
            self._call_off(name, before=asked[1])
            self._switch(engine)
            return engine
        finally:
            self._activating.discard(asked)

    async def roll_back(self, name: str) -> Engine:
        """Undo the last activation: call off what is being activated, else activate what was active before.

        Raises UnknownModelError, NotReadyError, ActivationError where nothing was; and as activate does.
        """
        active = self.engine_for(name)
        if any(name == activating for activating, _ in self._activating):
            self._call_off(name)
            return active
        former = self._former.get(name)
        if former is None:
            raise ActivationError(f"no other version of {name} was active before")
        return await self.activate(name, former)

    async def unload(self, name: str, version: str) -> None:
        """Answer what it has taken, then end its workers; with its active version a name answers no more.

        Raises UnknownModelError, and ActivationError for the default name's active version.
        """
        async with self._loading:
            engine = self.engine_for(name, version)
            if self.is_active(name, version):
                self._deactivate(name)
            self._engines = {key: kept for key, kept in self._engines.items() if kept is not engine}
            await engine.close()

    async def close(self) -> None:
        async with self._loading:
            engines, self._engines = tuple(self._engines.values()), {}
            await asyncio.gather(*(engine.close() for engine in engines))

    async def _load(self, name: str, version: str) -> Engine:
        loaded = self._engines.get((name, version))
        if loaded is not None:
            return loaded
        folder = await self._find(name, version)
        try:
            return await self._load_folder(folder)
        except LGMGuardError as error:
            logger.error("%s %s was not loaded: %s", name, version, error)
            reason = str(error).replace(f"{folder.resolve().parent}/", "")  # where it lies is nobody's business
            raise ActivationError(f"{name} {version} was not loaded: {reason}") from None

    async def _load_folder(self, folder: Path) -> Engine:
        engine = await Engine.load(
            folder.resolve(), settings=self._settings, metrics=self._metrics, traffic=self._traffic
        )
        self._engines = {**self._engines, (engine.name, engine.version): engine}
        return engine

    async def _find(self, name: str, version: str) -> Path:
        offers = await self.offers()
        if (name, version) in offers.bundles:
            return offers.bundles[name, version][0]
        if offers.faults:
            faults = "; ".join(f"{folder}: {reason}" for folder, reason in offers.faults.items())
            raise ActivationError(f"no sound bundle here is {name[:64]} {version[:64]}; refused are: {faults}")
        raise UnknownModelError(f"no bundle here is {name[:64]} {version[:64]}; GET /v1/models tells what there is")

    def _call_off(self, name: str, *, before: float = math.inf) -> None:
        self._activating = {asked for asked in self._activating if asked[0] != name or asked[1] >= before}

    def _switch(self, engine: Engine) -> None:
        before = self._active.get(engine.name)
        if before == engine.version:
            return
        if before is not None:
            self._former = {**self._former, engine.name: before}
        self._active = {**self._active, engine.name: engine.version}
        logger.info("%s %s is active", engine.name, engine.version)
        self._tell_active()
        if engine.name == self._default:
            self._metrics.default_model(false_alarm_rate=engine.false_alarm_rate, detectors=engine.detectors)

    def _deactivate(self, name: str) -> None:
        version = self._active[name]
        if name == self._default:
            raise ActivationError(f"{name} {version} is active; activate another version first")
        self._active = {known: active for known, active in self._active.items() if known != name}
        self._former = {known: former for known, former in self._former.items() if known != name}
        logger.info("%s answers no more", name)
        self._tell_active()

    def _tell_active(self) -> None:
        self._metrics.models_active(list(self._active.items()))
        self._metrics.calibrated([active.manifest for active in self.active_engines()])
