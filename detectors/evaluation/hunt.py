"""What an attack that knows the detector sees of its candidates, and the best that it has found so far.

Letters: n attacked images, m candidates for some of them, c channels, h w pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.base import Evidence
from detectors.fusion import combine
from detectors.screener import Screener


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One forward pass of the screener over m candidates with true labels (m,).

    evidence, suspicion (m,) and alarm (m,) lead back to images, a leaf of their graph, where gradients are enabled.
    suspicion is the verdict's score, alarm the sum of the detectors' surprises; higher = more suspicious. wrong (m,)
    where the class is not the label; p_value (m,) the verdict's.
    """

    images: Float[Tensor, "m c h w"]
    labels: Int[Tensor, " m"]
    evidence: Evidence
    suspicion: Float[Tensor, " m"]
    alarm: Float[Tensor, " m"]
    wrong: Bool[Tensor, " m"]
    p_value: Float[Tensor, " m"]

    @property
    def margin(self) -> Float[Tensor, " m"]:
        """log p(y | x) - max_{j != y} log p(j | x) in nats, below zero where the class is wrong."""
        log_probabilities, true = self.evidence.log_joint.log_softmax(1), self.labels.unsqueeze(1)
        others = log_probabilities.scatter(1, true, -torch.inf).amax(1)
        return log_probabilities.gather(1, true).squeeze(1) - others


def look_at(screener: Screener, images: Float[Tensor, "m c h w"], labels: Int[Tensor, " m"]) -> Look:
    """Class, suspicion and p-value from a single pass: the dearest thing that an attack does."""
    leaf = images.detach().requires_grad_()
    evidence = screener.gather(leaf)
    surprises = screener.surprises(evidence)
    suspicion = combine(surprises)
    return Look(
        images=leaf,
        labels=labels,
        evidence=evidence,
        suspicion=suspicion,
        alarm=surprises.sum(0),
        wrong=evidence.class_index != labels,
        p_value=screener.p_value(suspicion, evidence.class_index).float(),
    )


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

    def judge(self, rows: Int[Tensor, " m"], candidates: Float[Tensor, "m c h w"]) -> Look:
        """Look at candidates for those rows and keep the better ones: wrong class first, then the higher p-value."""
        look = look_at(self.screener, candidates, self.labels[rows])
        held_wrong, held_p_value = self._wrong[rows], self._p_value[rows]
        same = look.wrong == held_wrong
        better = (look.wrong & ~held_wrong) | (same & (look.p_value > held_p_value))
        kept = rows[better]
        self.best[kept] = candidates[better]
        self._wrong[kept] = look.wrong[better]
        self._p_value[kept] = look.p_value[better]
        return look
