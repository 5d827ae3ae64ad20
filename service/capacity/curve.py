"""What one replica was measured to take, by request and by batch; tests.benchmarks.capacity writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import ConfigurationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Point(Strict):
    """One load: requests of so many images over so many connections."""

    images_per_request: Count
    connections: Count
    at_random: bool = Field(False, description="Sent at random moments, not when the last was answered.")
    requests_per_second: Positive
    p50_seconds: Positive
    p99_seconds: Positive
    images_per_batch: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    batch_seconds: Positive = Field(description="A batch's time on the clock.")
    loop_seconds_per_request: Positive = Field(description="Processor time of the process that speaks HTTP.")
    worker_seconds_per_batch: Positive = Field(description="Processor time of the process that judges.")

    @property
    def images_per_second(self) -> float:
        return self.requests_per_second * self.images_per_request


class Curve(Strict):
    """The points, and what a reader needs to judge or repeat them."""

    schema_version: Literal[1]
    hardware: str
    bundle: str
    command: str
    cores: Count = Field(description="Processors of the replica.")
    workers: Count
    points: Annotated[tuple[Point, ...], Field(min_length=2)]
    memory_bytes: Count = Field(description="Greatest of all its processes, shared pages counted once.")
    bundle_bytes: Count
    request_bytes: Count = Field(description="Of one image's request, headers included.")
    series: Count = Field(description="Series that it exports.")

    def loop_cost(self) -> "LoopCost":
        """Processor seconds of the event loop."""
        ones, images = [1.0] * len(self.points), [float(point.images_per_request) for point in self.points]
        batches = [point.images_per_request / point.images_per_batch for point in self.points]
        seconds = [point.loop_seconds_per_request for point in self.points]
        request, image, batch = fit([ones, images, batches], seconds)
        return LoopCost(request=request, image=image, batch=batch)

    def batch_cost(self) -> "BatchCost":
        """Processor seconds of a worker."""
        ones, images = [1.0] * len(self.points), [point.images_per_batch for point in self.points]
        fixed, image = fit([ones, images], [point.worker_seconds_per_batch for point in self.points])
        return BatchCost(fixed=fixed, image=image)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopCost:
    """Seconds for each request, for each of its images, and for each batch that is handed over and answered."""

    request: float
    image: float
    batch: float

    def __call__(self, images: int) -> float:
        """Of a request, without its batch."""
        return self.request + self.image * images


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCost:
    """Seconds for each batch, and for each of its images."""

    fixed: float
    image: float

    def __call__(self, images: float) -> float:
        return self.fixed + self.image * images


def fit(columns: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """A cost for each column, none negative: least squares of relative errors, so that small loads weigh as large.

    Raises ConfigurationError where the columns do not tell the costs apart.
    """
    target = np.asarray(seconds, np.float64)
    weighed = np.asarray(columns, np.float64).T / target[:, None]
    if np.linalg.matrix_rank(weighed) < len(columns):
        raise ConfigurationError("points: loads of other sizes are needed; these do not tell the costs apart")
    costs, kept = np.zeros(len(columns)), list(range(len(columns)))
    while kept:
        found = np.linalg.lstsq(weighed[:, kept], np.ones_like(target), rcond=None)[0]
        if found.min() >= 0:
            costs[kept] = found
            break
        kept.pop(int(found.argmin()))  # what would be negative is nothing
    return [float(cost) for cost in costs]


def read_curve(path: Path) -> Curve:
    """Raises ConfigurationError that names the file, the field and the limit."""
    try:
        return Curve.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"curve: {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigurationError(f"curve: {path}: {where}: {first['msg']}") from None
