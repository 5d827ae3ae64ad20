"""For pages and programs that act for somebody: whom a key belongs to, and what is set here."""

from importlib.metadata import version
from typing import Literal, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.access import Principal
from service.routes.context import runtime_of

router = APIRouter(tags=["operations"])

# What people look up when they ask why; nothing that leads to a secret, a folder or another machine.
TOLD = (
    "device",
    "workers",
    "threads",
    "precision",
    "compiler",
    "policy",
    "max_batch_size",
    "max_wait_seconds",
    "queue_capacity",
    "max_instances",
    "max_body_bytes",
    "max_pixels",
    "request_timeout_seconds",
    "inference_timeout_seconds",
    "rate_limit",
    "rate_limit_burst",
    "max_in_flight",
    "max_in_flight_per_key",
    "max_held_bytes",
    "max_connections",
)


class Whoami(BaseModel):
    name: str | None = Field(description="The key's public id; null where no keys are set.")
    role: Literal["predict", "review", "admin"]


class About(BaseModel):
    version: str
    settings: dict[str, str | int | float] = Field(description="Those that bound what can be asked.")


@router.get("/v1/whoami", summary="Whom this key belongs to")
async def whoami(request: Request) -> Whoami:
    principal: Principal = request.scope["state"]["principal"]
    name = None if runtime_of(request).access.anonymous else principal.name
    return Whoami(name=name, role=cast(Literal["predict", "review", "admin"], principal.role.label))


@router.get("/v1/about", summary="Version, and the limits that are set")
async def about(request: Request) -> About:
    settings = runtime_of(request).settings
    return About(version=version("lgm-guard"), settings={name: getattr(settings, name) for name in TOLD})
