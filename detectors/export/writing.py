"""lgm export: a bundle's graph in a folder, checked against the bundle before the folder appears."""

import json
from dataclasses import asdict
from importlib.metadata import version as library_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Float
from torch import Tensor

from detectors.bundle import check_vacant
from detectors.export import triton
from detectors.export.agreement import LIKELIHOOD_TOLERANCE, TIE_TOLERANCE, Agreement, compare
from detectors.export.formats import Format, find_format, write
from detectors.export.graph import INPUT, MAX_BATCH_SIZE, Answers
from detectors.screener import Screener
from model.errors import ConfigurationError, ExportError

RECORD = "export.json"


def export(
    screener: Screener,
    output: Path,
    *,
    format_name: str,
    images: Float[Tensor, "n c h w"],
    source: str,
    name: str | None = None,
    max_batch_size: int = 64,
) -> Agreement:
    """Write OUTPUT/NAME/1/model.onnx (or model.pt2) and what stands beside it; how far it agrees on the images.

    source says, for the record, what the images are. Raises ConfigurationError for an unknown format or batch
    size, BundleError for a folder that holds something, ExportError naming a detector that cannot be
    exported, or where the graph does not agree; nothing is left then.
    """
    chosen = check(output, format_name)
    name = triton.check_name(name or screener.name)
    if not 1 <= max_batch_size <= MAX_BATCH_SIZE:
        raise ConfigurationError(f"max_batch_size must lie in 1..{MAX_BATCH_SIZE}, got {max_batch_size}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output, prefix=".") as temporary:
            folder = Path(temporary) / name
            agreement = _write(screener, folder, chosen, images)
            _write_beside(screener, folder, format_name, max_batch_size)
            record = _record(screener, name, format_name, chosen, agreement, source)
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            folder.replace(output / name)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror}") from None
    return agreement


def check(output: Path, format_name: str) -> Format:
    """What needs no bundle to be refused, before any work is done: the format, and a folder that holds something."""
    chosen = find_format(format_name)
    check_vacant(output)
    return chosen


def _write(screener: Screener, folder: Path, chosen: Format, images: Tensor) -> Agreement:
    path = folder / triton.VERSION / chosen.file
    path.parent.mkdir(parents=True)
    write(screener, chosen, path)
    agreement = compare(screener, chosen.load(path), images)
    agreement.check()
    return agreement


def _write_beside(screener: Screener, folder: Path, format_name: str, max_batch_size: int) -> None:
    (folder / triton.LABELS).write_text(triton.write_labels(screener), encoding="utf-8")
    if format_name == "onnx":
        config = triton.write_config(screener, folder.name, max_batch_size=max_batch_size)
        (folder / triton.CONFIG).write_text(config, encoding="utf-8")


def _record(
    screener: Screener, name: str, format_name: str, chosen: Format, agreement: Agreement, source: str
) -> dict[str, Any]:
    return {
        "bundle": {"name": screener.name, "version": screener.version},
        "format": format_name,
        "file": f"{name}/{triton.VERSION}/{chosen.file}",
        "input": {"name": INPUT, "shape": [-1, *screener.image_format.shape], "range": [0, 1]},
        "outputs": list(Answers._fields),
        "labels": list(screener.labels),
        "detectors": list(screener.fusion.names),
        "false_alarm_rate": screener.false_alarm_rate,
        "checked_on": source,
        "agreement": asdict(agreement),
        "tolerances": {"log_likelihood": LIKELIHOOD_TOLERANCE, "suspicion_ties": TIE_TOLERANCE},
        "libraries": {library: library_version(library) for library in chosen.libraries},
    }
