"""What is said of images, as arrays: cheap to cut into requests and to join again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def rows(self, start: int, stop: int) -> "Judgements":
        return self.select(slice(start, stop))

    def select(self, chosen: slice | NDArray[np.bool_]) -> "Judgements":
        return Judgements(
            self.class_index[chosen],
            self.probabilities[chosen],
            self.log_likelihood[chosen],
            self.p_value[chosen],
            self.flagged[chosen],
            self.detectors,
            self.evidence_scores[chosen],
            self.evidence_p_values[chosen],
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
