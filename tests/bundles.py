"""Bundles made from another one: damaged, wrong, or a version of its own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from detectors.manifest import CARD, MANIFEST, REFERENCE, _adapter, content_digest, serialise


def changed(bundle: Path, copy: Path, name: str) -> Path:
    """A copy with one byte of a file changed."""
    shutil.copytree(bundle, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    return copy


def with_other_scores(bundle: Path, copy: Path) -> Path:
    """A sound bundle but for the scores that it promises to reproduce."""
    reference = load((bundle / REFERENCE).read_bytes())
    reference["log_likelihood"] += 1
    return _with_file(bundle, copy, REFERENCE, save(reference))


def with_other_card(bundle: Path, copy: Path, card: str) -> Path:
    """Another version that judges alike."""
    return _with_file(bundle, copy, CARD, card.encode())


def with_other_name(bundle: Path, copy: Path, name: str) -> Path:
    """The same under another name."""
    shutil.copytree(bundle, copy)
    _write_manifest(copy, {**json.loads((copy / MANIFEST).read_bytes()), "name": name})
    return copy


def _with_file(bundle: Path, copy: Path, name: str, content: bytes) -> Path:
    shutil.copytree(bundle, copy)
    (copy / name).write_bytes(content)
    values = json.loads((copy / MANIFEST).read_bytes())
    values["files"][name] = hashlib.sha256(content).hexdigest()
    _write_manifest(copy, values)
    return copy


def _write_manifest(bundle: Path, values: dict[str, Any]) -> None:
    manifest = _adapter.validate_python(values)
    (bundle / MANIFEST).write_bytes(serialise(manifest, content_digest(manifest)))
