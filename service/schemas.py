"""The shapes of requests and answers, as OpenAPI tells them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["active", "loaded", "available"]
Probability = Annotated[float, Field(ge=0, le=1)]


class EncodedImage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    b64: str = Field(description="Base64 of an image file (PNG, JPEG, BMP, GIF, WebP).")


class PredictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    instances: list[EncodedImage | list[list[list[Probability]]]] = Field(
        min_length=1, description="Images: nested arrays (channels, height, width) of values in [0, 1], or files."
    )


class Model(BaseModel):
    name: str
    version: str = Field(description="Digest of the bundle's content.")


class LoadedModel(Model):
    default: bool = Field(
        description="Whether /v1/predict asks this name: that of the setting bundle. Others answer below /v2/models."
    )


class DetectorSays(BaseModel):
    score: float = Field(description="Higher = more suspicious.")
    p_value: Probability = Field(description="Small = suspicious.")


class Prediction(BaseModel):
    label: str | None = Field(description="Null where the policy withholds it.")
    class_index: int | None = Field(description="Null where the policy withholds it.")
    probability: Probability | None = Field(description="Of the label; null where the policy withholds it.")
    log_likelihood: float = Field(description="In nats; higher = more like the training data.")
    p_value: Probability = Field(description="Share of clean images of this class that look at most as likely.")
    flagged: bool = Field(description="Whether p_value is at most the promised false-alarm rate.")
    evidence: dict[str, DetectorSays] = Field(description="What each detector says.")


class Fault(BaseModel):
    field: str
    detail: str


class FailedPrediction(BaseModel):
    error: Fault


class PredictResponse(BaseModel):
    request_id: str
    model: Model
    predictions: list[Prediction | FailedPrediction] = Field(description="In the order of the images.")


class Problem(BaseModel):
    """RFC 9457, with the faults by field and a string member `error`."""

    type: str
    title: str
    status: int
    detail: str
    error: str = Field(description="The same as detail.")
    errors: list[Fault]
    request_id: str


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    model: Model


class ModelVersion(BaseModel):
    version: str = Field(description="Digest of the bundle's content.")
    state: State
    accuracy: float | None = Field(description="Measured on test images when it was made, if it was.")
    false_alarm_rate: float = Field(description="The promised share of clean images flagged at most.")


class NamedModel(BaseModel):
    name: str
    versions: list[ModelVersion]


class Versions(BaseModel):
    models: list[NamedModel]
    refused: dict[str, str] = Field(description="Folders that hold no sound bundle, and why.")


class Index(BaseModel):
    name: str
    version: str
    links: dict[str, str]
