"""What the page's process is told when it starts."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PREFIX = "/dashboard"


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="Address of the service.")
    socket: Path | None = Field(default=None, description="Socket of the service, to speak through instead of TCP.")
    allow_anonymous: bool = Field(description="Whether to let people in without a key, where the service asks none.")
    on_loopback: bool = Field(default=False, description="Whether this machine alone can reach the page.")
    bundles: tuple[Path, ...] = Field(default=(), description="Folders of bundles, for the playground.")
    models: Path | None = Field(default=None, description="Folder whose subfolders are bundles too.")
    reports: Path | None = Field(default=None, description="Folder of evaluation runs.")
    log_format: Literal["console", "json"] = "console"
    log_level: str = "info"
