"""A queue's Observer: tells what a model judges to all who count it."""

from collections.abc import Callable, Sequence

from service.judgements import Judgements
from service.metrics import Metrics
from service.monitoring.model_watch import ModelWatch
from service.monitoring.traffic import Traffic


class ModelObserver:
    """waiting: how many images of this model are in its queue."""

    def __init__(self, metrics: Metrics, traffic: Traffic, watch: ModelWatch, *, waiting: Callable[[], int]):
        self._metrics, self._traffic, self._watch, self._waiting = metrics, traffic, watch, waiting

    def batch_started(self, size: int, wait_seconds: Sequence[float]) -> None:
        self._metrics.batch_started(size, wait_seconds)
        self._traffic.batch_started(size, self._waiting())

    def batch_judged(self, judgements: Judgements, seconds: float) -> None:
        self._metrics.batch_judged(judgements, seconds)
        self._metrics.class_images.observe(self._watch.manifest.labels, judgements)
        self._traffic.batch_judged(judgements)
        self._watch.batch_judged(judgements)
