"""bundle.json: what a bundle is, and the digests that hold it together.

Every file is checked against its digest before anything is made of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.errors import BundleError
from model.network_config import MixtureConfig, NetworkConfig

SCHEMA_VERSION = 5
MANIFEST, NETWORK, DETECTORS, REFERENCE, CARD = FILES = (
    "bundle.json",
    "network.safetensors",
    "detectors.safetensors",
    "reference.safetensors",
    "README.md",
)


@dataclass(frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid"))
class DataSplit:
    """Which data set it was fitted on and how its images were parted, so that its test images are found again."""

    name: str
    split_seed: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """bundle.json. Sizes are numbers of images; measured holds the figures of the card.

    fused: those of the detectors that decide together. created: when it was calibrated. data: on what. Bundles made
    before these were noted do not say.
    """

    schema_version: int
    name: str
    version: str
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize: bool
    network: NetworkConfig
    mixture: MixtureConfig
    detectors: tuple[str, ...]
    fused: tuple[str, ...]
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    calibration_sizes: dict[str, int]
    split_digests: dict[str, str]
    measured: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, str]
    created: AwareDatetime | None = None
    data: DataSplit | None = None


_adapter = TypeAdapter(Manifest)


def load_manifest(path: Path) -> Manifest:
    """bundle.json, checked to the byte against the version that it names."""
    raw = _read(path / MANIFEST)
    try:
        values = json.loads(raw)
        schema = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path / MANIFEST} is not a bundle's manifest") from None
    if schema != SCHEMA_VERSION:
        raise BundleError(f"{path / MANIFEST} has schema version {schema!r}; this version reads {SCHEMA_VERSION}")
    try:
        manifest = _adapter.validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise BundleError(f"{path / MANIFEST}: {key}: {problem['msg']}") from None
    if raw != serialise(manifest, content_digest(manifest)):
        raise BundleError(f"{path / MANIFEST} was changed: its content is not that of version {manifest.version}")
    if not {NETWORK, DETECTORS, REFERENCE, CARD} == set(manifest.files):
        raise BundleError(f"{path / MANIFEST} lists other files than a bundle has")
    return manifest


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise BundleError(f"{path} is no file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None


def read_checked(path: Path, digest: str) -> bytes:
    """Raises BundleError unless the file is there and has this SHA-256."""
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleError(f"{path} was changed: its SHA-256 is not the one in {MANIFEST}")
    return content


def content_digest(manifest: Manifest) -> str:
    """The version: of all but itself."""
    return hashlib.sha256(serialise(manifest, "")).hexdigest()[:16]


def serialise(manifest: Manifest, version: str) -> bytes:
    """The one form that the file may have, to the byte."""
    values = _adapter.dump_python(manifest, mode="json")
    for name in ("created", "data"):
        if values[name] is None:
            del values[name]
    return json.dumps({**values, "version": version}, indent=2, ensure_ascii=False).encode() + b"\n"
