"""What is said of images, as arrays: cheap to cut into requests and to join again."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors import Verdicts

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Judgements:
    """n images, k classes, e detectors; scores and p_values of evidence are (n, e) in the order of detectors."""

    class_index: NDArray[np.int64]
    probabilities: Floats
    log_likelihood: Floats
    p_value: Floats
    flagged: NDArray[np.bool_]
    detectors: tuple[str, ...]
    evidence_scores: Floats
    evidence_p_values: Floats

    def __len__(self) -> int:
        return len(self.class_index)

    @classmethod
    def of(cls, verdicts: Verdicts) -> "Judgements":
        evidence = verdicts.evidence
        return cls(
            class_index=_array(verdicts.class_index),
            probabilities=_array(verdicts.probabilities),
            log_likelihood=_array(verdicts.log_likelihood),
            p_value=_array(verdicts.p_value),
            flagged=_array(verdicts.flagged),
            detectors=tuple(evidence),
            evidence_scores=_array(torch.stack([said.score for said in evidence.values()], dim=1)),
            evidence_p_values=_array(torch.stack([said.p_value for said in evidence.values()], dim=1)),
        )

    def rows(self, start: int, stop: int) -> "Judgements":
        return Judgements(
            self.class_index[start:stop],
            self.probabilities[start:stop],
            self.log_likelihood[start:stop],
            self.p_value[start:stop],
            self.flagged[start:stop],
            self.detectors,
            self.evidence_scores[start:stop],
            self.evidence_p_values[start:stop],
        )


def join(parts: list[Judgements]) -> Judgements:
    if len(parts) == 1:
        return parts[0]
    return Judgements(
        np.concatenate([part.class_index for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.log_likelihood for part in parts]),
        np.concatenate([part.p_value for part in parts]),
        np.concatenate([part.flagged for part in parts]),
        parts[0].detectors,
        np.concatenate([part.evidence_scores for part in parts]),
        np.concatenate([part.evidence_p_values for part in parts]),
    )


def _array(values: Tensor) -> NDArray[Any]:
    return values.numpy(force=True)
