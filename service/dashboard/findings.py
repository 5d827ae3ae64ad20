"""What the page asks of an experiment, and what comes of it. Nothing here loads a network."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_EPS = 0.5
MAX_STEPS = 20
Attack = Literal["fgsm", "bim"]
Pixels = Annotated[str, Field(description="A PNG in base64.")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class SamplesWanted(Record):
    """Images that the bundle itself brings along, one of each class."""

    kind: Literal["samples"] = "samples"
    bundle: Path


class Experiment(Record):
    """An image file, attacked so that the class it was taken for becomes less likely. eps in units of [0, 1]."""

    kind: Literal["attack"] = "attack"
    bundle: Path
    image: str = Field(description="The file in base64.")
    attack: Attack = "fgsm"
    eps: float = Field(ge=0, le=MAX_EPS)
    steps: int = Field(default=10, ge=1, le=MAX_STEPS)


class Says(Record):
    score: float
    p_value: float


class Judged(Record):
    """What the screener says of one image, and where its features lie in the plane."""

    label: str
    class_index: int
    probability: float
    probabilities: tuple[float, ...]
    log_likelihood: float
    p_value: float
    flagged: bool
    evidence: dict[str, Says]
    position: tuple[float, float]
    distance_from_plane: float
    nearest: tuple[tuple[str, float], ...] = Field(description="Class means nearest in feature space, and how far.")


class ClassEllipse(Record):
    label: str
    centre: tuple[float, float]
    half_axes: tuple[float, float]
    angle: float


class Finding(Record):
    kind: Literal["finding"] = "finding"
    model: str
    version: str
    false_alarm_rate: float
    num_features: int
    image: Pixels
    attacked_image: Pixels
    perturbation: Pixels = Field(description="The difference magnified: grey is none.")
    magnification: float | None
    clean: Judged
    attacked: Judged
    classes: tuple[ClassEllipse, ...]
    anchors: tuple[str, ...] = Field(description="The classes whose means span the plane.")
    seconds: float


class Sample(Record):
    label: str
    image: Pixels


class Samples(Record):
    kind: Literal["samples"] = "samples"
    samples: tuple[Sample, ...]


class Refusal(Record):
    kind: Literal["refusal"] = "refusal"
    error: str


Question = Annotated[Experiment | SamplesWanted, Field(discriminator="kind")]
Answer = Annotated[Finding | Samples | Refusal, Field(discriminator="kind")]
QUESTION: TypeAdapter[Experiment | SamplesWanted] = TypeAdapter(Question)
ANSWER: TypeAdapter[Finding | Samples | Refusal] = TypeAdapter(Answer)
