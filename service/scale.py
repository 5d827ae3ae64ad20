"""The service on Ray Serve: `serve run service.scale:app bundle=... min_replicas=2`.

A replica is the whole service as `lgm serve` runs it (the same application, its own worker processes and batches)
behind Serve's proxies, which share requests out, start and end replicas by the requests that are ongoing, and drain
those that a new version takes the place of. So an answer and the version it names come from one place always.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from fastapi import FastAPI
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from ray import serve
from ray.serve import Application

from detectors.manifest import load_manifest
from service.app import create_app
from service.errors import SettingsError
from service.logs import configure_logs
from service.runtime import Runtime
from service.settings import Settings, load_settings

PREFIX = "LGM_SCALE_"
ONGOING_HEADROOM = 4  # times the target: what a replica takes until another one has started

# Settings of what Serve does instead, or what a replica cannot do for the others.
NOT_HERE = {
    "models": "a version is rolled by deploying its bundle",
    "grpc_port": "Serve's proxies speak HTTP",
    "tls_certificate": "TLS ends before Serve's proxies",
    "reports": "the dashboard runs beside lgm serve",
}


class Scale(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=0, description="Fewest replicas; with 0 the first request waits for one.")
    max_replicas: int = Field(default=4, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        default=16, gt=0, le=10_000, description="Requests in progress at each replica that Serve aims at."
    )
    upscale_delay_seconds: float = Field(
        default=10, ge=0, description="How long there must be more, to add replicas."
    )
    downscale_delay_seconds: float = Field(default=300, ge=0, description="How long fewer, to end some.")
    cpus_per_replica: float = Field(
        default=1, gt=0, le=1_024, description="Processors of each; one worker process for each whole."
    )
    gpus_per_replica: float = Field(
        default=0, ge=0, le=64, description="GPUs of each, as 0.5 for two on one; sets device cuda."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})")
        if self.gpus_per_replica > 1 and not self.gpus_per_replica.is_integer():
            raise ValueError(f"gpus_per_replica ({self.gpus_per_replica:g}) must be at most 1 or a whole number")
        return self


def app(args: Mapping[str, Any]) -> Application:
    """The application that Serve's import_path names. args: settings of Scale, and of the service.

    Raises SettingsError naming the setting, BundleError.
    """
    scale = _scale({name: value for name, value in args.items() if name in Scale.model_fields})
    given = {name: value for name, value in args.items() if name not in Scale.model_fields}
    settings = _settings(given, scale)
    options = {
        "max_ongoing_requests": max(1, round(ONGOING_HEADROOM * scale.target_ongoing_requests)),
        "max_queued_requests": settings.queue_capacity,
        "graceful_shutdown_timeout_s": settings.shutdown_timeout_seconds,
        "logging_config": {"enable_access_log": False},  # the service's own says more, and can be thinned
        "ray_actor_options": {"num_cpus": scale.cpus_per_replica, "num_gpus": scale.gpus_per_replica},
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "initial_replicas": max(1, scale.min_replicas),
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": scale.upscale_delay_seconds,
            "downscale_delay_s": scale.downscale_delay_seconds,
        },
    }
    deployment: Any = serve.deployment(serve.ingress()(Service))
    version = load_manifest(
        settings.bundle
    ).version  # another one rolls the replicas, although the folder is the same
    bound: Application = deployment.options(**options).bind(settings, version)
    return bound


class Service:
    """One replica. It takes requests once its model is loaded, warm and checked."""

    def __init__(self, settings: Settings, version: str):
        configure_logs(style=settings.log_format, level=settings.log_level)
        self._runtime = Runtime(settings=settings)
        self._version = version

    def __serve_build_asgi_app__(self) -> FastAPI:
        application = create_app(self._runtime.settings, runtime=self._runtime)
        starting = application.router.lifespan_context

        @asynccontextmanager
        async def lifespan(started: FastAPI) -> AsyncIterator[None]:
            async with starting(started):
                await self._load()
                yield

        application.router.lifespan_context = lifespan
        return application

    async def _load(self) -> None:
        """Raises BundleError, WorkerDiedError; SettingsError where this node has another version of the bundle."""
        assert self._runtime.loading is not None
        await self._runtime.loading
        found = self._runtime.engine_for().version
        if found != self._version:
            raise SettingsError(f"bundle: this node's is {found}, {self._version} was deployed")

    def check_health(self) -> None:
        """Serve replaces a replica whose worker does not come back."""
        if not self._runtime.draining:
            self._runtime.check_ready()


def _scale(given: dict[str, Any]) -> Scale:
    try:
        return Scale(**given)
    except ValidationError as error:
        said = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
        raise SettingsError("; ".join(f"{name}: {text}".removeprefix(": ") for name, text in said)) from None


def _settings(given: dict[str, Any], scale: Scale) -> Settings:
    """What a replica is told, with defaults for its share of a machine."""
    if scale.gpus_per_replica:
        given = {"device": "cuda", **given}
    else:
        given = {"workers": max(1, int(scale.cpus_per_replica)), "threads": 1, **given}
    settings = load_settings(**{**given, "dashboard": False})
    for name, instead in NOT_HERE.items():
        if getattr(settings, name) is not None:
            raise SettingsError(f"{name}: not on Ray Serve, where {instead}")
    if settings.api_keys is None and not settings.allow_anonymous:
        raise SettingsError(
            "api_keys: Serve's proxies may be open to other machines and no API keys are set; make some "
            "(lgm keys new --help) and name their file, or say allow_anonymous=true"
        )
    return settings
