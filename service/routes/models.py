"""Versions: what there is, loading, activating, going back, unloading."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.engine import Engine
from service.registry import Registry
from service.routes.context import runtime_of
from service.schemas import LoadedModel, ModelVersion, NamedModel, Problem, State, Versions

router = APIRouter(prefix="/v1/models", tags=["models"])
VERSION = "/{name}/versions/{version}"
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (404, 409, 503)}


@router.get("", summary="Names, their versions, and what state each is in")
async def models(request: Request) -> Versions:
    registry = runtime_of(request).registry
    offers = await registry.offers()
    versions: dict[str, list[ModelVersion]] = {}
    for (name, version), (_, manifest) in sorted(offers.bundles.items()):
        accuracy = manifest.measured.get("accuracy")
        versions.setdefault(name, []).append(
            ModelVersion(
                version=version,
                state=_state(registry, name, version),
                accuracy=accuracy if isinstance(accuracy, float) else None,
                false_alarm_rate=manifest.false_alarm_rate,
            )
        )
    found = [NamedModel(name=name, versions=of) for name, of in versions.items()]
    return Versions(models=found, refused=offers.faults)


@router.post(VERSION + "/load", summary="Make a version ready beside those that serve", responses=REFUSALS)
async def load(request: Request, name: str, version: str) -> LoadedModel:
    registry = runtime_of(request).registry
    return _model(registry, await registry.load(name, version))


@router.post(
    VERSION + "/activate", summary="Let a version answer for its name, loaded first if need be", responses=REFUSALS
)
async def activate(request: Request, name: str, version: str) -> LoadedModel:
    registry = runtime_of(request).registry
    return _model(registry, await registry.activate(name, version))


@router.post("/{name}/rollback", summary="Activate what was active before", responses=REFUSALS)
async def roll_back(request: Request, name: str) -> LoadedModel:
    registry = runtime_of(request).registry
    return _model(registry, await registry.roll_back(name))


@router.delete(VERSION, summary="Unload a version that /v1/predict does not ask", status_code=204, responses=REFUSALS)
async def unload(request: Request, name: str, version: str) -> Response:
    await runtime_of(request).registry.unload(name, version)
    return Response(status_code=204)


def _state(registry: Registry, name: str, version: str) -> State:
    if registry.is_active(name, version):
        return "active"
    return "loaded" if registry.is_loaded(name, version) else "available"


def _model(registry: Registry, engine: Engine) -> LoadedModel:
    return LoadedModel(name=engine.name, version=engine.version, default=registry.is_default(engine.name))
