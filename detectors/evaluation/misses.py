"""The most convincing misses of a run as small pictures: clean, attacked, and the change magnified."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from detectors.evaluation.rows import Measured

NUM_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Miss:
    """An attacked image that is misclassified and not flagged; images are (c, h, w) in [0, 1]."""

    title: str
    clean: np.ndarray
    attacked: np.ndarray
    true_class: int
    predicted_class: int
    p_value: float


def best_misses(measured: Sequence[Measured]) -> list[Miss]:
    """The highest p-values, first one of each task, then the next of each: no attack crowds out the others."""
    lists = [_misses_of(one) for one in measured if one.task.group == "attack" and not one.task.on_curve]
    ranks = [sorted((found[rank] for found in lists if rank < len(found)), key=_doubt) for rank in range(NUM_SHOWN)]
    return [miss for rank in ranks for miss in rank][:NUM_SHOWN]


def _doubt(miss: Miss) -> float:
    return -miss.p_value


def _misses_of(measured: Measured) -> list[Miss]:
    task = measured.task
    title = f"{task.title}{'' if task.eps is None else f', eps {task.eps:.3g}'}"
    rows = zip(measured.part.misses, measured.part.miss_facts, strict=True)
    return [
        Miss(
            title=title,
            clean=pair[0],
            attacked=pair[1],
            true_class=int(facts[0]),
            predicted_class=int(facts[1]),
            p_value=float(facts[2]),
        )
        for pair, facts in rows
    ]


def draw_miss(miss: Miss, labels: Sequence[str]) -> str:
    """A figure of HTML: three pictures and what they are."""
    change = miss.attacked - miss.clean
    largest = float(np.abs(change).max())
    factor = 0.5 / largest if largest else 1.0
    pictures = (
        (miss.clean, f"clean: {labels[miss.true_class]}"),
        (miss.attacked, f"taken for {labels[miss.predicted_class]}"),
        (0.5 + change * factor, f"change × {factor:.3g}"),
    )
    drawn = "".join(
        f'<div><img alt="{escape(told)}" src="{to_data_url(image)}">{escape(told)}</div>' for image, told in pictures
    )
    caption = f"{miss.title}: p = {miss.p_value:.3f}, largest change of a pixel {largest:.3g}"
    return (
        f'<figure class="miss"><div class="pictures">{drawn}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def to_data_url(image: np.ndarray) -> str:
    """(c, h, w) in [0, 1] as a PNG inside the page."""
    pixels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
