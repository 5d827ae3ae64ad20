"""Which of the judged images are kept. The event loop's part: it chooses, and hands over once the answer has left."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine
from service.judgements import Floats, Judgements
from service.metrics import Metrics
from service.quarantine.backlog import Backlog, Captured
from service.settings import Settings

logger = logging.getLogger(__name__)


class Capture:
    """Keeps every flagged image, and of all images, flagged or not, a share that is drawn blindly."""

    def __init__(self, backlog: Backlog, metrics: Metrics, *, share: float):
        self._backlog, self._metrics, self._share = backlog, metrics, share
        self._chance = np.random.default_rng()

    def offer(self, engine: Engine, images: Floats, judgements: Judgements, state: Mapping[str, Any]) -> None:
        """state: the request's, with its id and who sent it. Returns at once; what is chosen is copied later."""
        drawn = self._draw(len(judgements))
        chosen = judgements.flagged if drawn is None else judgements.flagged | drawn
        if not chosen.any():
            return
        if drawn is None:
            drawn = np.zeros(len(chosen), dtype=np.bool_)
        # The answer is written in the turn of the loop that this call is part of.
        asyncio.get_running_loop().call_soon(self._hand_over, engine, images, judgements, chosen, drawn, state)

    def _draw(self, count: int) -> NDArray[np.bool_] | None:
        return None if self._share == 0 else self._chance.random(count) < self._share

    def _hand_over(
        self,
        engine: Engine,
        images: Floats,
        judgements: Judgements,
        chosen: NDArray[np.bool_],
        drawn: NDArray[np.bool_],
        state: Mapping[str, Any],
    ) -> None:
        captured = Captured(
            images=images[chosen],
            judgements=judgements.select(chosen),
            drawn=drawn[chosen],
            model_name=engine.name,
            model_version=engine.version,
            labels=engine.labels,
            false_alarm_rate=engine.false_alarm_rate,
            request_id=state["request_id"],
            principal=state["principal"].name,
            judged_at=datetime.now(UTC),
        )
        num_dropped = len(captured) - self._backlog.put(captured)
        if num_dropped:
            self._metrics.quarantined.labels("dropped").inc(num_dropped)


def share_of(settings: Settings) -> float:
    """The share of all images that is kept, beside those that are flagged."""
    return {"sampled": settings.quarantine_sample_share, "all": 1.0}.get(settings.quarantine, 0.0)
