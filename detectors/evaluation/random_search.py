"""A gradient-free attack on classifier and detector: Square's random search (Andriushchenko et al. 2020, algorithm 1)
on what the screener tells anyone: class, probabilities and score.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detectors.evaluation.hunt import Hunt
from detectors.evaluation.threat import Norm, confine, random_start

QUERIES_PER_STEP = 10  # a gradient step costs a forward and a backward pass of both classifier and detector
FIRST_SHARE = 0.8  # of the pixels, that the first windows cover
HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries: the paper's schedule


@torch.no_grad()
def random_search(hunt: Hunt, *, eps: float, norm: Norm, steps: int, generator: torch.Generator) -> None:
    """Change a random window of each open image; keep it where the margin shrinks, or, once wrong, the suspicion."""
    current = hunt.images.clone()
    wrong = torch.zeros_like(hunt.labels, dtype=torch.bool)
    value = torch.full(hunt.labels.shape, math.inf, device=current.device)
    num_queries = QUERIES_PER_STEP * steps
    for query in range(num_queries):
        rows = hunt.open_rows()
        if len(rows) == 0:
            return
        clean = hunt.images[rows]
        if query == 0:
            proposed = _stripes(clean, eps=eps, norm=norm, generator=generator)
        else:
            share = window_share(query / num_queries)
            proposed = _propose(clean, current[rows], share, eps=eps, norm=norm, generator=generator)
        look = hunt.judge(rows, proposed)
        found = torch.where(look.wrong, look.suspicion, look.margin)
        better = (look.wrong & ~wrong[rows]) | ((look.wrong == wrong[rows]) & (found < value[rows]))
        kept = rows[better]
        current[kept], wrong[kept], value[kept] = proposed[better], look.wrong[better], found[better]


def window_share(progress: float) -> float:
    """Share of the pixels that a window covers, when so much of the queries is spent."""
    return FIRST_SHARE / 2.0 ** sum(progress > halved for halved in HALVED_AT)


def _stripes(
    clean: Float[Tensor, "m c h w"], *, eps: float, norm: Norm, generator: torch.Generator
) -> Float[Tensor, "m c h w"]:
    """Vertical stripes of +-eps, which convolutions heed; for l2 a random point."""
    if norm == "l2":
        return random_start(clean, eps=eps, norm=norm, generator=generator)
    number, channels, _, width = clean.shape
    return confine(clean + eps * _signs((number, channels, 1, width), clean, generator), clean, eps=eps, norm=norm)


def _propose(
    clean: Float[Tensor, "m c h w"],
    current: Float[Tensor, "m c h w"],
    share: float,
    *,
    eps: float,
    norm: Norm,
    generator: torch.Generator,
) -> Float[Tensor, "m c h w"]:
    """linf: the window becomes clean +- eps; l2: it gets +- what fills the budget, then all is scaled back to it."""
    number, channels, height, width = clean.shape
    side = min(height, width, max(1, round(math.sqrt(share * height * width))))
    window = _windows(clean, side, generator)
    signs = _signs((number, channels, 1, 1), clean, generator)
    changed = clean + eps * signs if norm == "linf" else current + eps / (side * math.sqrt(channels)) * signs
    return confine(torch.where(window, changed, current), clean, eps=eps, norm=norm)


def _windows(clean: Float[Tensor, "m c h w"], side: int, generator: torch.Generator) -> Bool[Tensor, "m 1 h w"]:
    """A square of that side at a random place of each image."""
    number, _, height, width = clean.shape

    def covered(length: int) -> Bool[Tensor, "m length"]:
        first = torch.randint(length - side + 1, (number, 1), generator=generator).to(clean.device)
        place = torch.arange(length, device=clean.device)
        return (place >= first) & (place < first + side)

    return covered(height).view(number, 1, height, 1) & covered(width).view(number, 1, 1, width)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(2, shape, generator=generator) * 2 - 1).to(like)
