"""Output tensors of the Open Inference Protocol: their names, datatypes and shapes, from judgements.

n images, k classes, e detectors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine
from service.errors import FieldFault, InvalidInputError
from service.judgements import Judgements

WITHHELD_CLASS = -1
DTYPES: dict[str, np.dtype[Any]] = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}


@dataclass(frozen=True, slots=True)
class Output:
    """One output: `columns` names its second axis, where it has one."""

    datatype: str
    values: Callable[[Judgements], NDArray[Any]]
    columns: Callable[[Engine], tuple[str, ...]] | None = None

    def shape(self, engine: Engine) -> list[int]:
        """With -1 for the number of images."""
        return [-1] if self.columns is None else [-1, len(self.columns(engine))]

    def array(self, judgements: Judgements) -> NDArray[Any]:
        """Contiguous, in the protocol's little-endian layout."""
        return np.ascontiguousarray(self.values(judgements), dtype=DTYPES[self.datatype])


def _labels(engine: Engine) -> tuple[str, ...]:
    return engine.labels


def _detectors(engine: Engine) -> tuple[str, ...]:
    return engine.detectors


OUTPUTS = {
    "class_index": Output("INT64", lambda judgements: judgements.class_index),
    "probabilities": Output("FP32", lambda judgements: judgements.probabilities, _labels),
    "log_likelihood": Output("FP32", lambda judgements: judgements.log_likelihood),
    "p_value": Output("FP32", lambda judgements: judgements.p_value),
    "flagged": Output("BOOL", lambda judgements: judgements.flagged),
    "evidence_scores": Output("FP32", lambda judgements: judgements.evidence_scores, _detectors),
    "evidence_p_values": Output("FP32", lambda judgements: judgements.evidence_p_values, _detectors),
}


def check_names(names: Iterable[str]) -> None:
    """Raises InvalidInputError for the first requested output that is unknown or asked for twice."""
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name not in OUTPUTS:
            detail = f"unknown output {name[:64]!r}; there are {', '.join(OUTPUTS)}"
        elif name in seen:
            detail = f"{name!r} is asked for twice"
        else:
            seen.add(name)
            continue
        raise InvalidInputError(FieldFault(f"outputs[{position}].name", detail))


def withhold_flagged(judgements: Judgements) -> Judgements:
    """Flagged images get class -1 and probabilities of 0, which every client reads; JSON has no NaN."""
    flagged = judgements.flagged
    return replace(
        judgements,
        class_index=np.where(flagged, WITHHELD_CLASS, judgements.class_index),
        probabilities=np.where(flagged[:, None], np.float32(0), judgements.probabilities),
    )
