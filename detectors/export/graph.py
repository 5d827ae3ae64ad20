"""What is exported: a screener's verdict as one graph of plain tensor operations.

Legend: n images, k classes.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from detectors.base import Evidence, gather_evidence
from detectors.gathering import CHUNK
from detectors.screener import Screener
from model import gaussian
from model.errors import ExportError

INPUT = "images"
MAX_BATCH_SIZE = CHUNK  # detectors with a reference set judge more in several rounds, which no graph can count
SIZES = {INPUT: {0: Dim("n", min=1, max=MAX_BATCH_SIZE)}}


class Answers(NamedTuple):
    """The graph's outputs: class_index (n,), probabilities (n, k), log_likelihood, p_value and flagged (n,)."""

    class_index: Int[Tensor, " n"]
    probabilities: Float[Tensor, "n k"]
    log_likelihood: Float[Tensor, " n"]
    p_value: Float[Tensor, " n"]
    flagged: Bool[Tensor, " n"]


class Graph(nn.Module, ABC):
    """Images (n, c, h, w) -> tensors by name, the names in the order of `outputs`."""

    def __init__(self, screener: Screener, outputs: tuple[str, ...]):
        super().__init__()
        self.screener = _with_fixed_choices(screener)
        self.outputs = outputs

    def forward(self, images: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
        with WrittenOut():
            return self.answer(gather_evidence(self.screener.network, images))

    @abstractmethod
    def answer(self, evidence: Evidence) -> dict[str, Tensor]:
        """The outputs from one forward pass."""


class ScreeningGraph(Graph):
    """`Screener.screen` without its checks of the images and without the evidence beside the verdict."""

    def __init__(self, screener: Screener):
        super().__init__(screener, Answers._fields)

    def answer(self, evidence: Evidence) -> dict[str, Tensor]:
        class_index = evidence.class_index
        p_value = self.screener.p_value(self.screener.suspect(evidence), class_index)
        answers = Answers(
            class_index=class_index,
            probabilities=gaussian.posterior(evidence.log_joint),
            log_likelihood=gaussian.log_likelihood(evidence.log_joint),
            p_value=p_value,
            flagged=p_value <= self.screener.false_alarm_rate,
        )
        return answers._asdict()


class ScoresGraph(Graph):
    """Scores of some detectors alone: shows which of them it is that cannot be exported."""

    def answer(self, evidence: Evidence) -> dict[str, Tensor]:
        return {name: self.screener.detectors[name](evidence) for name in self.outputs}


class NetworkGraph(Graph):
    """The log joint (n, k) alone: shows whether the network can be exported."""

    def __init__(self, screener: Screener):
        super().__init__(screener, ("log_joint",))

    def answer(self, evidence: Evidence) -> dict[str, Tensor]:
        return {"log_joint": evidence.log_joint}


def capture(graph: Graph) -> ExportedProgram:
    """The graph by torch.export, for 1 to MAX_BATCH_SIZE images. Whatever torch raises comes through."""
    example = torch.zeros(2, *graph.screener.image_format.shape)  # of one, the size would be taken for a constant
    with torch.no_grad():
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=SIZES)


def _with_fixed_choices(screener: Screener) -> Screener:
    """A copy whose whole numbers and switches are constants: how many neighbours, whether an image is smoothed."""
    fixed = copy.deepcopy(screener).cpu().requires_grad_(False)
    for module in fixed.modules():
        for name, value in list(module.named_buffers(recurse=False)):
            if value.ndim == 0 and not value.is_floating_point():
                delattr(module, name)
                setattr(module, name, value.item())
    return fixed


class WrittenOut(TorchFunctionMode):
    """Replaces what ONNX lacks, or what a runtime gets wrong, by plainer operations."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return WRITTEN_OUT.get(function, function)(*args, **(kwargs or {}))


def _distances(
    rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"], p: float = 2, compute_mode: str | None = None
) -> Float[Tensor, "n m"]:
    """torch.cdist of p = 2, from differences where the caller asks for exact ones, else from a matrix product."""
    if p != 2:
        raise ExportError(f"torch.cdist with p = {p} has no exported form")
    if compute_mode == "donot_use_mm_for_euclid_dist":
        return (rows.unsqueeze(1) - others).square().sum(2).sqrt()
    lengths = rows.square().sum(1, keepdim=True) + others.square().sum(1)
    return (lengths - 2 * rows @ others.T).clamp_min(0).sqrt()


def _logsumexp(values: Float[Tensor, "n k"], dim: int, keepdim: bool = False) -> Tensor:
    """onnxruntime (1.32) gives -inf for a row with one -inf among values below -100."""
    greatest = values.amax(dim, keepdim=True)
    shift = torch.where(greatest.isinf(), 0, greatest)
    found = (values - shift).exp().sum(dim, keepdim=True).log() + shift
    return found if keepdim else found.squeeze(dim)


def _searchsorted(table: Float[Tensor, "n m"], asked: Float[Tensor, "n a"]) -> Int[Tensor, "n a"]:
    """How many of each ascending row lie below what is asked; ONNX has no binary search. NaN is above all."""
    return (~(table.unsqueeze(1) >= asked.unsqueeze(2))).sum(2)


WRITTEN_OUT = {
    torch.cdist: _distances,
    torch.logsumexp: _logsumexp,
    Tensor.logsumexp: _logsumexp,
    torch.searchsorted: _searchsorted,
}
