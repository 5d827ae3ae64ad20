"""Split-conformal p-values, per predicted class: scores -> a promise on false alarms.

p = (1 + #{calibration scores of the predicted class >= s}) / (n + 1), with n the number of calibration
scores of that class (Vovk et al., Mondrian conformal prediction). For clean inputs
exchangeable with the calibration set P(p <= a) <= a for every a, in every class.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.errors import CalibrationError


def check_rate(false_alarm_rate: float) -> None:
    """Raises CalibrationError unless the rate lies in (0, 1)."""
    if not 0 < false_alarm_rate < 1:
        raise CalibrationError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate}")


class ConformalCalibration(nn.Module):
    """Sorted clean scores of every class; turns a score and a predicted class into a p-value in (0, 1].

    scores: (k, m), each row ascending and padded with infinity; counts: (k,) how many of a row are real.
    """

    scores: Tensor
    counts: Tensor

    def __init__(self, scores: Float[Tensor, "k m"], counts: Int[Tensor, " k"]):
        super().__init__()
        self.register_buffer("scores", scores)
        self.register_buffer("counts", counts)

    @classmethod
    def fit(
        cls, scores: Float[Tensor, " n"], class_index: Int[Tensor, " n"], num_classes: int
    ) -> "ConformalCalibration":
        """From clean scores and the classes predicted for them; none may have been used for fitting.

        Raises CalibrationError for a score that is not finite.
        """
        if not bool(scores.isfinite().all()):
            raise CalibrationError("a calibration score is not finite: the network does not judge clean data")
        counts = torch.bincount(class_index, minlength=num_classes)
        table = scores.new_full((num_classes, max(1, int(counts.max()))), math.inf)
        for index in range(num_classes):
            row = scores[class_index == index].sort().values
            table[index, : len(row)] = row
        return cls(table, counts)

    @classmethod
    def join(cls, tables: "Sequence[ConformalCalibration]") -> "ConformalCalibration":
        """The rows of one table after those of the other, so that one call looks up all of them."""
        longest = max(table.scores.shape[1] for table in tables)
        padded = [nn.functional.pad(of.scores, (0, longest - of.scores.shape[1]), value=math.inf) for of in tables]
        return cls(torch.cat(padded), torch.cat([table.counts for table in tables]))

    @property
    def counts_by_class(self) -> list[int]:
        """How many clean scores each class is calibrated on."""
        counts: list[int] = self.counts.tolist()
        return counts

    def check_promise(self, false_alarm_rate: float, class_names: tuple[str, ...]) -> None:
        """Refuse a rate that a class could never flag at, since its smallest p-value is 1 / (n + 1).

        Raises CalibrationError naming the class, what it has and what it needs.
        """
        check_rate(false_alarm_rate)
        needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
        for name, count in zip(class_names, self.counts_by_class, strict=True):
            if count < needed:
                raise CalibrationError(
                    f"class {name!r} is predicted for {count} calibration images; a false-alarm rate of "
                    f"{false_alarm_rate:g} needs at least {needed}: calibrate on more images or promise a higher rate"
                )

    def forward(self, scores: Float[Tensor, " n"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """p-values, small = suspicious. A score that is not a number gets the smallest there is."""
        counts, table = self.counts[class_index], self.scores[class_index]
        asked = scores.detach().to(table.dtype).contiguous().unsqueeze(1)
        below = torch.searchsorted(table, asked).squeeze(1)
        at_least = counts - torch.minimum(below, counts)
        return (1 + at_least) / (counts + 1)
