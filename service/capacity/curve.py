"""What one replica was measured to take, by request and by batch; tests.benchmarks.capacity writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import ConfigurationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Point(Strict):
    """One load: requests of so many images over so many connections, each sent when the last was answered."""

    images_per_request: Count
    connections: Count
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

    def loop_cost(self) -> "Line":
        """Processor seconds of the event loop for a request, by its images."""
        return fit(
            [point.images_per_request for point in self.points],
            [point.loop_seconds_per_request for point in self.points],
        )

    def batch_cost(self) -> "Line":
        """Processor seconds of a worker for a batch, by its images."""
        return fit(
            [point.images_per_batch for point in self.points],
            [point.worker_seconds_per_batch for point in self.points],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """fixed + each * count, in seconds; neither is negative."""

    fixed: float
    each: float

    def __call__(self, count: int) -> float:
        return self.fixed + self.each * count


def fit(counts: list[float] | list[int], seconds: list[float]) -> Line:
    """Least squares of relative errors, so that small counts weigh as much as large ones.

    Raises ConfigurationError where all counts are alike: no line is told from another then.
    """
    if max(counts) - min(counts) < 0.5:
        raise ConfigurationError(f"points: all have about {counts[0]:g} images; two sizes at least are needed")
    x, y = np.asarray(counts, np.float64), np.asarray(seconds, np.float64)
    fixed, each = _least_squares(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    if fixed < 0:
        ((each,),) = (_least_squares((x / y)[:, None], np.ones_like(y)),)
    if each < 0:
        ((fixed,),) = (_least_squares((1 / y)[:, None], np.ones_like(y)),)
    return Line(fixed=max(0.0, float(fixed)), each=max(0.0, float(each)))


def _least_squares(columns: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.lstsq(columns, target, rcond=None)[0].astype(np.float64)


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
