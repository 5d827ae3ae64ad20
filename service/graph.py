"""A screener as one graph of tensor operations: Python leads it through them once, not for every batch.

At one image the modules' Python costs nearly as much as the network. A graph is used only where it says what the
screener says, at every batch size that is warmed.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detectors import Screener
from model.image_set import to_unit

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]
EXAMPLE_SIZE = 2  # at one, sizes that happen to be equal would be taken for the batch's
TOLERANCE = 1e-5


class Verdict(nn.Module):
    """images (n, c, h, w) -> the fields of Judgements, in their order, evidence as (n, e)."""

    def __init__(self, screener: Screener):
        super().__init__()
        self._screener = screener

    def forward(self, images: Tensor) -> Outputs:
        verdicts = self._screener.screen(images)
        said = verdicts.evidence.values()
        return (
            verdicts.class_index,
            verdicts.probabilities,
            verdicts.log_likelihood,
            verdicts.p_value,
            verdicts.flagged,
            torch.stack([of.score for of in said], dim=1),
            torch.stack([of.p_value for of in said], dim=1),
        )


def graph_of(screener: Screener, sizes: Sequence[int]) -> Callable[[Tensor], Outputs]:
    """The screener's graph if it is exact at all these batch sizes; else the screener as it is."""
    verdict = Verdict(screener)
    images = _examples(screener, max(sizes, default=1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that checks of its input are left out of it: whoever calls it checks
            graph = torch.jit.trace(verdict, (images[:EXAMPLE_SIZE],), check_trace=False)  # type: ignore[no-untyped-call]
        exact = all(_alike(graph(images[:size]), verdict(images[:size])) for size in sizes)
    except RuntimeError as error:
        logger.info("the screener runs as it is, since it cannot be traced: %s", error)
        return verdict
    if not exact:
        logger.info("the screener runs as it is, since its graph says something else")
    return graph if exact else verdict


def _examples(screener: Screener, count: int) -> Tensor:
    """Clean images in more and more noise, so that there is something to flag. None is clean: the scores of those
    are the calibration's own, and rounding decides ties.
    """
    assert screener.reference is not None
    clean = to_unit(screener.reference.images).to(screener.device)
    repeated = clean.repeat(1 + max(count, EXAMPLE_SIZE) // len(clean), 1, 1, 1)
    strength = torch.linspace(0.02, 1, len(repeated), device=clean.device).view(-1, 1, 1, 1)
    noise = torch.rand(repeated.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    return torch.lerp(repeated, noise, strength).contiguous(memory_format=torch.channels_last)


def _alike(found: Outputs, expected: Outputs) -> bool:
    return all(
        torch.allclose(one.double(), other.double(), rtol=TOLERANCE, atol=10 * TOLERANCE)
        for one, other in zip(found, expected, strict=True)
    )
