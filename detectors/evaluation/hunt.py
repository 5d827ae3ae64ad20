"""What an attack that knows the detector has found so far, judged by the screener itself."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.screener import Screener


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Of m candidates: wrong (m,), p_value (m,), score (m,) the verdict's, higher = more suspicious, and
    margin (m,) = log p(y | x) - max_{j != y} log p(j | x) in nats, below zero where the class is wrong.
    """

    wrong: Bool[Tensor, " m"]
    p_value: Float[Tensor, " m"]
    score: Float[Tensor, " m"]
    margin: Float[Tensor, " m"]


class Hunt:
    """The best image found of each of n, never a worse one than before; it starts with the clean images.

    An image is open until its class is wrong at a p-value above `enough`.
    """

    def __init__(
        self, screener: Screener, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], *, enough: float
    ):
        self.screener = screener
        self.images = images
        self.labels = labels
        self.enough = enough
        self.best = images.clone()
        self._wrong = torch.zeros_like(labels, dtype=torch.bool)
        self._p_value = torch.full(labels.shape, -1.0, device=images.device)
        self.judge(torch.arange(len(images), device=images.device), images)

    def open_rows(self) -> Int[Tensor, " m"]:
        """The images still to be attacked."""
        return (~(self._wrong & (self._p_value > self.enough))).nonzero().squeeze(1)

    def judge(self, rows: Int[Tensor, " m"], candidates: Float[Tensor, "m c h w"]) -> Judged:
        """Screen candidates for those rows and keep the better ones: wrong class first, then the higher p-value."""
        judged = self._screen(rows, candidates)
        held_wrong, held_p_value = self._wrong[rows], self._p_value[rows]
        same = judged.wrong == held_wrong
        better = (judged.wrong & ~held_wrong) | (same & (judged.p_value > held_p_value))
        kept = rows[better]
        self.best[kept] = candidates[better]
        self._wrong[kept] = judged.wrong[better]
        self._p_value[kept] = judged.p_value[better]
        return judged

    def _screen(self, rows: Int[Tensor, " m"], candidates: Float[Tensor, "m c h w"]) -> Judged:
        verdicts = self.screener.screen(candidates)
        labels = self.labels[rows].unsqueeze(1)
        log_probabilities = verdicts.probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        others = log_probabilities.scatter(1, labels, -torch.inf).amax(1)
        return Judged(
            wrong=verdicts.class_index != self.labels[rows],
            p_value=verdicts.p_value.float(),
            score=verdicts.evidence[self.screener.decider].score,
            margin=log_probabilities.gather(1, labels).squeeze(1) - others,
        )
