"""A screener on disk: a folder of bundle.json and safetensors files, immutable, named by its content.

Every file is checked against its digest before anything is made of it, and nothing is unpickled.
"""

import hashlib
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from detectors.calibration import ConformalCalibration
from detectors.fusion import Fusion, Surprise
from detectors.known import KNOWN_DETECTORS
from detectors.manifest import (
    CARD,
    DETECTORS,
    MANIFEST,
    NETWORK,
    REFERENCE,
    SCHEMA_VERSION,
    DataSplit,
    Manifest,
    content_digest,
    load_manifest,
    read_checked,
    serialise,
)
from detectors.screener import Reference, Screener
from model.errors import BundleError, LGMGuardError
from model.image_set import to_unit
from model.images import ImageFormat
from model.network import Network
from model.network_config import MixtureConfig, NetworkConfig


def save_bundle(
    screener: Screener,
    path: Path,
    *,
    network: NetworkConfig,
    mixture: MixtureConfig,
    reference_images: Tensor,
    split_digests: Mapping[str, str],
    measured: Mapping[str, Any],
    card: str,
    created: datetime | None = None,
    data: DataSplit | None = None,
) -> Screener:
    """Write a bundle whole; the screener as loaded from it.

    Raises BundleError where something stands already, or it cannot be written.

    created: when it was calibrated, now unless said. It is part of the content, so of the version. data: on what.
    """
    check_vacant(path)
    files = {
        NETWORK: save_tensors(_contiguous(screener.network.state_dict())),
        DETECTORS: save_tensors(_contiguous(_judges_state(screener))),
        REFERENCE: save_tensors(_reference_state(screener, reference_images)),
        CARD: card.encode(),
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=screener.name,
        version="",
        labels=screener.labels,
        image_shape=screener.image_format.shape,
        resize=screener.image_format.resize,
        network=network,
        mixture=mixture,
        detectors=tuple(screener.detectors),
        fused=screener.fusion.names,
        false_alarm_rate=screener.false_alarm_rate,
        calibration_sizes=screener.calibration_sizes,
        split_digests=dict(split_digests),
        measured=dict(measured),
        libraries=_libraries(),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        created=(created or datetime.now(UTC)).replace(microsecond=0),
        data=data,
    )
    _write_whole(path.resolve(), {**files, MANIFEST: serialise(manifest, content_digest(manifest))})
    return load_bundle(path)


def _write_whole(path: Path, files: Mapping[str, bytes]) -> None:
    """The folder is there with all of its files or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=path.parent) as beside:
            folder = Path(beside, path.name)
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            folder.replace(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}") from None


def check_vacant(path: Path) -> None:
    """Raises BundleError unless a bundle can be written there: an empty folder, or none yet."""
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is not a folder; choose another one")
    if path.exists() and any(path.iterdir()):
        raise BundleError(f"{path} is not empty; bundles are never changed, choose another folder")


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Screener:
    """Load a bundle and check it whole: schema, version, every file's digest, every tensor's shape.

    Raises BundleError naming the file and the reason; what the device says against it comes as torch raises it.
    """
    path = Path(path)
    manifest = load_manifest(path)
    contents = {name: read_checked(path / name, digest) for name, digest in manifest.files.items()}
    try:
        screener = _assemble(manifest, contents)
    except (SafetensorError, KeyError, TypeError, IndexError, RuntimeError, ValueError, LGMGuardError) as error:
        raise BundleError(f"{path}: {MANIFEST} and its tensors do not fit together: {error}") from None
    return screener.to(device)


def _assemble(manifest: Manifest, contents: dict[str, bytes]) -> Screener:
    network = Network(
        manifest.network,
        manifest.mixture,
        num_classes=len(manifest.labels),
        num_channels=manifest.image_shape[0],
    )
    network.load_state_dict(load_tensors(contents[NETWORK]))
    state = load_tensors(contents[DETECTORS])
    reference = Reference(**load_tensors(contents[REFERENCE]))
    screener = Screener(
        network,
        [KNOWN_DETECTORS[name].from_state(_below(state, f"detectors.{name}.")) for name in manifest.detectors],
        Fusion(manifest.fused, Surprise(**_below(state, "fusion.surprise."))),
        ConformalCalibration(**_below(state, "calibration.")),
        labels=manifest.labels,
        image_format=ImageFormat(shape=manifest.image_shape, resize=manifest.resize),
        false_alarm_rate=manifest.false_alarm_rate,
        name=manifest.name,
        version=manifest.version,
        reference=reference,
    )
    _check_shapes(manifest, screener, reference)
    # Convolutions over channels that lie side by side take half the time on a CPU, and tensor cores want them so.
    screener.network.to(memory_format=torch.channels_last)
    return screener.requires_grad_(False)


def _check_shapes(manifest: Manifest, screener: Screener, reference: Reference) -> None:
    """What load_state_dict does for the network, for the tensors beside it."""
    if not manifest.fused or not set(manifest.fused) <= set(manifest.detectors):
        raise BundleError(f"its verdict needs {', '.join(manifest.fused) or 'detectors'}, which it does not have")
    tables = {
        "the calibration": (screener.calibration, ("scores", "counts"), len(manifest.detectors) + 1),
        "the fusion": (screener.fusion.surprise, ("knots", "tails"), len(manifest.fused)),
    }
    for name, (table, buffers, blocks) in tables.items():
        rows, expected = {len(table.get_buffer(buffer)) for buffer in buffers}, blocks * len(manifest.labels)
        if rows != {expected}:
            raise BundleError(f"{name} has {max(rows)} rows of detectors and classes, there are {expected}")
    if tuple(reference.images.shape[1:]) != manifest.image_shape:
        raise BundleError(f"its reference images are {tuple(reference.images.shape[1:])}")
    screener.screen(to_unit(reference.images[:1]))  # what detectors hold fits the network, or this fails


def _reference_state(screener: Screener, images: Tensor) -> dict[str, Tensor]:
    verdicts = screener.screen(to_unit(images))
    return {
        "images": images.contiguous(),
        "class_index": verdicts.class_index.cpu(),
        "log_likelihood": verdicts.log_likelihood.cpu(),
        "suspicion": verdicts.suspicion.cpu(),
    }


def _judges_state(screener: Screener) -> dict[str, Tensor]:
    state = screener.state_dict()
    return {name: values for name, values in state.items() if not name.startswith("network.")}


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach().cpu().contiguous() for name, values in state.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _libraries() -> dict[str, str]:
    names = ("lgm-guard", "torch", "torchvision", "safetensors")
    return {"python": platform.python_version(), **{name: library_version(name) for name in names}}
