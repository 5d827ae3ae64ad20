"""What the service answers, typed: the same shapes as its OpenAPI document's, which a test compares.

Reading raises KeyError, TypeError, ValueError or AttributeError for other shapes; unknown members are passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["active", "loaded", "available"]
PROBLEM_TYPE = "urn:lgm-guard:problem:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    name: str
    version: str

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Model":
        return cls(name=raw["name"], version=raw["version"])


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorSays:
    """score: higher = more suspicious; p_value: small = suspicious."""

    score: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """label, class_index and probability are None where the service withholds them of a flagged image."""

    label: str | None
    class_index: int | None
    probability: float | None
    log_likelihood: float
    p_value: float
    flagged: bool
    evidence: dict[str, DetectorSays]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Prediction":
        evidence = {
            name: DetectorSays(score=of["score"], p_value=of["p_value"]) for name, of in raw["evidence"].items()
        }
        return cls(
            label=raw["label"],
            class_index=raw["class_index"],
            probability=raw["probability"],
            log_likelihood=raw["log_likelihood"],
            p_value=raw["p_value"],
            flagged=raw["flagged"],
            evidence=evidence,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """field: which image, or which part of the request; detail: what is wrong with it."""

    field: str
    detail: str

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Fault":
        return cls(field=raw["field"], detail=raw["detail"])


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedPrediction:
    """Stands in the place of an image that could not be judged."""

    error: Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictResponse:
    """One request's answer."""

    request_id: str
    model: Model
    predictions: tuple[Prediction | FailedPrediction, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "PredictResponse":
        return cls(
            request_id=raw["request_id"],
            model=Model.read(raw["model"]),
            predictions=tuple(
                FailedPrediction(error=Fault.read(of["error"])) if "error" in of else Prediction.read(of)
                for of in raw["predictions"]
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """RFC 9457, with the faults by field."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    errors: tuple[Fault, ...]
    request_id: str

    @property
    def code(self) -> str:
        """The problem's name, such as "overloaded"."""
        return self.type.removeprefix(PROBLEM_TYPE)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Problem":
        texts = {name: raw[name] for name in ("type", "title", "status", "detail", "error", "request_id")}
        return cls(**texts, errors=tuple(map(Fault.read, raw["errors"])))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    version: str
    state: State
    accuracy: float | None
    false_alarm_rate: float

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "ModelVersion":
        return cls(**{name: raw[name] for name in ("version", "state", "accuracy", "false_alarm_rate")})


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    name: str
    versions: tuple[ModelVersion, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "NamedModel":
        return cls(name=raw["name"], versions=tuple(map(ModelVersion.read, raw["versions"])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Versions:
    """refused: folders that hold no sound bundle, and why."""

    models: tuple[NamedModel, ...]
    refused: dict[str, str]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Versions":
        return cls(models=tuple(map(NamedModel.read, raw["models"])), refused=dict(raw["refused"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What is said of all images of a call, in their order, whatever requests they were sent in.

    models: those that answered, in the order of their first answer; more than one only where another was activated
    meanwhile. request_ids: of the requests that were answered.
    """

    predictions: tuple[Prediction | FailedPrediction, ...]
    models: tuple[Model, ...]
    request_ids: tuple[str, ...]
