"""What is kept of a finished task: scores, p-values, predictions and a few thumbnails, one file each.

Files appear whole or not at all, so that a run that was interrupted goes on from what it has.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from detectors.evaluation.settings import EvaluationError

RUN = "run.json"
FOLDER = "parts"
TEMPORARY = ".tmp"
FUSED = "fused"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """n judged images. scores and p_values by detector, float32; the fused verdict's are called `fused`.

    seconds: attacking and screening; attack_seconds: attacking alone. perturbation: mean sizes by norm.
    targets: the classes aimed at, of a targeted attack.
    misses: float32 images (t, 2, c, h, w), clean and attacked, of the most convincing misses, best first;
    miss_facts (t, 3): true class, predicted class, p-value.
    """

    labels: np.ndarray
    predictions: np.ndarray
    scores: dict[str, np.ndarray]
    p_values: dict[str, np.ndarray]
    seconds: float
    attack_seconds: float
    perturbation: dict[str, float] = field(default_factory=dict)
    misses: np.ndarray
    miss_facts: np.ndarray
    targets: np.ndarray | None = None

    @property
    def detectors(self) -> list[str]:
        """Names, the verdict's first."""
        return sorted(self.scores, key=lambda name: (name != FUSED, name))

    @property
    def right(self) -> np.ndarray:
        """Which images the classifier got right."""
        return np.asarray(self.predictions == self.labels)


def open_folder(output: Path, fingerprint: str, settings: dict[str, Any]) -> None:
    """Make or take up a run's folder; raises EvaluationError where it cannot be this run's."""
    check_folder(output, fingerprint)
    make_folder(output)
    write_json(output / RUN, {"fingerprint": fingerprint, "settings": settings})
    make_folder(output / FOLDER)  # last: until the run is named the folder holds nothing


def check_folder(output: Path, fingerprint: str) -> None:
    """Raises EvaluationError unless the folder is absent, empty, or holds this very run."""
    if not output.exists():
        return
    if not output.is_dir():
        raise EvaluationError(f"{output} is not a folder; choose another one")
    if all(map(_is_left_over, output.iterdir())):
        return
    try:
        found = json.loads((output / RUN).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise EvaluationError(f"{output} is not empty and holds no evaluation; choose another folder") from None
    if found != fingerprint:
        raise EvaluationError(
            f"{output} holds another run (other settings, bundle or images); choose another folder, "
            "or repeat the same command to go on with that one"
        )


def _is_left_over(path: Path) -> bool:
    """What a run leaves that ended before it was named."""
    return path.name == RUN + TEMPORARY or (path.name == FOLDER and path.is_dir() and not any(path.iterdir()))


def save_part(output: Path, key: str, part: Part) -> None:
    """Write a part; it appears whole or not at all. Raises EvaluationError where it cannot be written."""
    facts = {"seconds": part.seconds, "attack_seconds": part.attack_seconds, "perturbation": part.perturbation}
    arrays = {"labels": part.labels, "predictions": part.predictions, "misses": part.misses}
    arrays |= {"miss_facts": part.miss_facts}
    arrays |= {} if part.targets is None else {"targets": part.targets}
    arrays |= {f"score {name}": values for name, values in part.scores.items()}
    arrays |= {f"p {name}": values for name, values in part.p_values.items()}
    content = save(
        {name: np.ascontiguousarray(values) for name, values in arrays.items()}, {"facts": json.dumps(facts)}
    )
    _write(_path(output, key), content)


def load_part(output: Path, key: str) -> Part | None:
    """The part, or None where it is not there yet; one that cannot be read is measured again."""
    path = _path(output, key)
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
        return Part(
            labels=arrays["labels"],
            predictions=arrays["predictions"],
            scores=_named(arrays, "score "),
            p_values=_named(arrays, "p "),
            misses=arrays["misses"],
            miss_facts=arrays["miss_facts"],
            targets=arrays.get("targets"),
            **facts,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _log.warning("%s cannot be read and is measured again: %s", path, error)
        return None


def block_key(key: str, index: int) -> str:
    """A part's index-th batch, kept until the part is whole."""
    return f"{key}.{index:06}"


def discard_blocks(output: Path, key: str) -> None:
    """The part is written: its batches are not needed any more."""
    for path in (output / FOLDER).glob(f"{key}.*.safetensors"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a figure that is not a number is a mistake and raises ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all. Raises EvaluationError where the folder cannot be written to."""
    _write(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises EvaluationError where the folder cannot be written to."""
    _write(path, content)


def make_folder(folder: Path) -> None:
    """Raises EvaluationError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be made: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise EvaluationError(f"{path} cannot be written: {error.strerror}") from None


def _path(output: Path, key: str) -> Path:
    return output / FOLDER / f"{key}.safetensors"


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
