"""The settings of the process: command line over environment (LGM_...) over TOML file over default."""

import os
import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from detectors.shipped import SHIPPED_BUNDLE
from model.images import MAX_PIXELS
from service.cpus import available_cpus
from service.errors import SettingsError

PREFIX = "LGM_"
MEBIBYTE = 1024 * 1024

Seconds = Annotated[float, Field(allow_inf_nan=False)]
Precision = Literal["float32", "bfloat16"]
Compiler = Literal["none", "inductor"]

MOST_DEFAULT_WORKERS = 4


def _default_workers(given: dict[str, Any]) -> int:
    """Processes of one thread each bear other load beside them; threads that wait for each other do not."""
    return min(MOST_DEFAULT_WORKERS, available_cpus()) if given.get("device", "cpu") == "cpu" else 1


def _default_threads(given: dict[str, Any]) -> int:
    workers: int = given.get("workers", available_cpus())
    return max(1, available_cpus() // workers)


def _default_state_folder() -> Path:
    """As the XDG base directory specification has it; nothing is written into a work tree."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lgm-guard"


class Settings(BaseSettings):
    """Those with repr=False may hold a password, and are never shown."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    config: Path | None = Field(default=None, description="TOML file with any of these settings.")
    bundle: Path = Field(default=SHIPPED_BUNDLE, description="Folder of the bundle to serve.")
    models: Path | None = Field(
        default=None, description="Folder of further bundles, one a subfolder, that can be loaded and activated."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of the gRPC server; 0 takes a free one, without it there is none.",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|mps|cuda(:\d+)?(,cuda:\d+)*)$",
        examples=["cpu", "mps", "cuda", "cuda:0", "cuda:0,cuda:1"],
        description="Where the network runs: cpu, mps, cuda (every device), cuda:N, or several by comma.",
    )
    workers: int = Field(
        default_factory=_default_workers,
        ge=1,
        le=256,
        description="Processes that judge, on each device; by default one a processor, at most 4; one on a GPU.",
    )
    threads: int = Field(
        default_factory=_default_threads,
        ge=1,
        le=1024,
        description="Processor threads of each worker; by default the container's shared among them.",
    )
    precision: Precision = Field(default="float32", description="Of the backbone; scores are float32 always.")
    compiler: Compiler = Field(
        default="none", description="What compiles the backbone at start; inductor is torch.compile's."
    )
    max_batch_size: int = Field(default=64, ge=1, le=4096, description="Most images judged at once.")
    max_wait_seconds: Seconds = Field(
        default=0.002, ge=0, le=1, description="How long a busy service collects a batch; an idle one starts at once."
    )
    queue_capacity: int = Field(
        default=1024, ge=1, le=1_000_000, description="Most images that may wait; beyond, requests get 503."
    )
    max_instances: int = Field(default=256, ge=1, le=65536, description="Most images in one request.")
    max_body_bytes: int = Field(
        default=16 * MEBIBYTE, ge=1024, le=1024 * MEBIBYTE, description="Most bytes in one request's body."
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, le=1_000_000_000, description="Most pixels of one image file, seen before decoding."
    )
    request_timeout_seconds: Seconds = Field(
        default=30, gt=0, le=3600, description="Longest that a body may take to arrive, and then its answer."
    )
    inference_timeout_seconds: Seconds = Field(
        default=30, gt=0, le=3600, description="Longest that one batch may take before its worker is replaced."
    )
    policy: Literal["flag", "withhold"] = Field(
        default="flag", description="Whether a flagged image's label is answered or withheld."
    )
    drain_seconds: Seconds = Field(
        default=1, ge=0, le=600, description="How long it goes on serving, not ready, after SIGTERM."
    )
    shutdown_timeout_seconds: int = Field(
        default=30, ge=1, le=3600, description="Longest that running requests may take to end at shutdown."
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Form of the log's lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged; info has a line for each request."
    )
    access_log_share: float = Field(
        default=1, ge=0, le=1, description="Share of requests without error that get their line in the log."
    )

    # Who may ask, and how much: security.py, limits.py, connections.py, tls.py.
    api_keys: Path | None = Field(
        default=None, description="File of API keys (lgm keys); without, whoever can connect may do everything."
    )
    allow_anonymous: bool = Field(default=False, description="Listen to other machines although no keys are set.")
    rate_limit: float = Field(
        default=0, ge=0, le=1e9, description="Images a second for each key, or address without keys; 0 is unlimited."
    )
    rate_limit_burst: int = Field(
        default=256, ge=1, le=1_000_000, description="Images that one may send at once before the rate limit holds."
    )
    rate_limit_store: str | None = Field(
        default=None,
        pattern=r"^(rediss?|unix)://\S+$",
        examples=["redis://host:6379/0", "rediss://host:6379/0", "unix:///path"],
        repr=False,
        description="URL of a Redis in which services share rate limits; without, each has its own.",
    )
    max_in_flight: int = Field(
        default=1024, ge=1, le=1_000_000, description="Most requests in flight; beyond, requests get 503."
    )
    max_in_flight_per_key: int = Field(
        default=0, ge=0, le=1_000_000, description="Most in flight for each key or address, else 429; 0 is unlimited."
    )
    max_held_bytes: int = Field(
        default=512 * MEBIBYTE, ge=1024, description="Most bytes that the bodies in flight hold together, else 503."
    )
    max_connections: int = Field(
        default=3000, ge=1, le=1_000_000, description="Most connections; beyond, the longest idle one is closed."
    )
    max_head_bytes: int = Field(
        default=32 * 1024, ge=1024, le=MEBIBYTE, description="Most bytes of a request's line and headers."
    )
    head_timeout_seconds: Seconds = Field(
        default=10, gt=0, le=3600, description="Longest that a request's line and headers may take to arrive."
    )
    tls_certificate: Path | None = Field(
        default=None, description="Certificate chain (PEM) to serve HTTPS with; read again when it changes."
    )
    tls_key: Path | None = Field(default=None, description="Private key (PEM) of the certificate.")
    tls_client_ca: Path | None = Field(
        default=None, description="Authorities (PEM) of which each client must show a certificate; read again."
    )

    # What people look at: dashboard/.
    dashboard: bool = Field(default=True, description="Offer the web page /dashboard.")
    reports: Path | None = Field(
        default=None, description="Folder of evaluation runs that the dashboard lists, one a subfolder."
    )

    # What is kept for review: quarantine/.
    state_folder: Path = Field(
        default_factory=_default_state_folder, description="Folder of what the service keeps by itself."
    )
    quarantine: Literal["off", "metadata", "flagged", "sampled", "all"] = Field(
        default="flagged",
        description="Which images are kept: none, flagged ones without their bytes, flagged, also a sample, or all.",
    )
    quarantine_sample_share: float = Field(
        default=0.01, gt=0, le=1, description="Share of all images that is kept where a sample is."
    )
    quarantine_database: str | None = Field(
        default=None, repr=False, description="URL of SQLite or PostgreSQL; by default a SQLite file in state_folder."
    )
    quarantine_store: str | None = Field(
        default=None,
        repr=False,
        description="Folder or fsspec URL (s3://...) of the bytes; by default one in state_folder.",
    )
    quarantine_max_age_days: float = Field(
        default=30, gt=0, le=36500, description="Age at which what is kept expires."
    )
    quarantine_max_bytes: int = Field(
        default=1024 * MEBIBYTE, ge=1, description="Most bytes kept; beyond, the oldest expire, reviewed ones first."
    )
    quarantine_max_items: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Most items kept; beyond, the oldest expire likewise."
    )
    quarantine_queue_capacity: int = Field(
        default=1024, ge=1, le=1_000_000, description="Most images that wait to be kept; beyond, they are dropped."
    )
    quarantine_queue_bytes: int = Field(
        default=128 * MEBIBYTE, ge=1, description="Most bytes of pixels that wait to be kept, likewise."
    )

    # Observability: tracing.py.
    trace_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        examples=["http://localhost:4318/v1/traces"],
        repr=False,
        description="URL that takes OTLP over HTTP, as http://localhost:4318/v1/traces; needs lgm-guard[tracing].",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Which would count as 0 or 1 where a number is wanted."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must be a value of its own, not true or false")
        return value

    @model_validator(mode="after")
    def _security_fits_together(self) -> Self:
        if self.api_keys is not None and self.allow_anonymous:
            raise ValueError("api_keys and allow_anonymous exclude each other")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are only good together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) is more than max_held_bytes ({self.max_held_bytes}); "
                "such a body could never be accepted"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.grpc_port and self.grpc_port == self.port:
            raise ValueError(f"grpc_port and port are both {self.port}; each protocol needs its own")
        return self

    @model_validator(mode="after")
    def _requests_fit_the_queue(self) -> Self:
        if self.max_instances > self.queue_capacity:
            raise ValueError(
                f"max_instances ({self.max_instances}) is more than queue_capacity ({self.queue_capacity}); "
                "such a request could never be accepted"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = init_settings().get("config") or os.environ.get(PREFIX + "CONFIG")
        values = _read_toml(Path(path)) if path else {}
        if "config" in values:
            raise SettingsError(f"config: {path} names another file; one alone is read")
        from_file = InitSettingsSource(settings_cls, values)
        return init_settings, env_settings, from_file


NOT_SETTINGS = ("LGM_URL", "LGM_API_KEY", "LGM_DATA_DIR", "LGM_TEST_SEED")  # but the client's, the data's, the tests'
SCALE_PREFIX = "LGM_SCALE_"
NEAR = 0.75  # of names that all begin alike
FOLLOWS_FROM_ANOTHER = "default_factory_not_called"  # a default that is made of settings, one of which is wrong


def load_settings(**given: Any) -> Settings:
    """Settings with these on top. Raises SettingsError naming each wrong setting and its limit."""
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = [problem for problem in error.errors() if problem["type"] != FOLLOWS_FROM_ANOTHER]
        raise SettingsError("; ".join(_describe(dict(problem)) for problem in wrong)) from None


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_folder(name: str, folder: Path | None) -> None:
    """Raises SettingsError where a folder is given that cannot be listed, by the setting's name."""
    try:
        if folder is not None:
            os.listdir(folder)
    except OSError as error:
        raise SettingsError(f"{name}: {folder} cannot be read: {error.strerror}") from None


def stray_variables(names: Iterable[str]) -> Iterator[str]:
    """What to tell of each environment variable that looks like a setting, and is none."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in names:
        said = name.upper()
        if said.startswith(PREFIX) and said not in (*known, *NOT_SETTINGS) and not said.startswith(SCALE_PREFIX):
            nearest = "".join(f", but {found} is" for found in get_close_matches(said, known, n=1, cutoff=NEAR))
            yield f"the variable {name} is no setting{nearest}"


def _describe(problem: dict[str, Any]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; `lgm serve --help` lists all"
    said = str(problem["msg"]).removeprefix("Value error, ")
    if not name:
        return said
    field = Settings.model_fields[name]
    if problem["type"] == "string_pattern_mismatch":
        said = f"must be as {' or '.join(field.examples or ())}"
    got = f", got {problem['input']!r}" if field.repr else ""
    return f"{name} ({option(name)}, {PREFIX}{name.upper()}): {said}{got}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"config: {path} is not TOML: {error}") from None
