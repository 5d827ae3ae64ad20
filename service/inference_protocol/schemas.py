"""The JSON of the Open Inference Protocol, as it is checked and as OpenAPI tells it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, Strict
from pydantic_core import PydanticCustomError

from service.inference_protocol.tensors import IMAGES

Scalar = bool | int | float | str


def _all_scalar(parameters: dict[str, Any]) -> dict[str, Any]:
    for name, value in parameters.items():
        if not isinstance(value, Scalar):
            raise PydanticCustomError(
                "scalar", "{name} must be a boolean, a number or a string", {"name": repr(name[:64])}
            )
    return parameters


Text = Annotated[str, Strict()]
Parameters = Annotated[
    dict[str, Any],
    AfterValidator(_all_scalar),
    BeforeValidator(lambda given: {} if given is None else given),  # as absent, as a null id is
    Field(json_schema_extra={"additionalProperties": {"type": ["boolean", "number", "string"]}}),
]
Axes = Annotated[list[Annotated[int, Strict()]], FailFast(), Field(min_length=1, max_length=8)]


class RequestInput(BaseModel):
    name: Text = Field(json_schema_extra={"enum": [IMAGES]})
    datatype: Text = Field(description="FP32 in [0, 1] or UINT8.")
    shape: Axes = Field(description="[n, channels, height, width]")
    parameters: Parameters = Field(default={}, description="binary_data_size: bytes of this tensor after the JSON.")
    data: list[Any] | None = Field(
        default=None, description="Row-major elements, flat or nested; omitted where binary_data_size is given."
    )


class RequestOutput(BaseModel):
    name: Text
    parameters: Parameters = Field(default={}, description="binary_data: whether it is answered as bytes.")


class InferenceRequest(BaseModel):
    id: Text | None = Field(default=None, description="Comes back in the answer.")
    parameters: Parameters = Field(
        default={},
        description="binary_data_output: whether outputs are answered as bytes; timeout: in microseconds.",
    )
    inputs: Annotated[list[RequestInput], FailFast()] = Field(description="One: images.")
    outputs: Annotated[
        list[RequestOutput], FailFast(), BeforeValidator(lambda given: [] if given is None else given)
    ] = Field(default=[], description="Which outputs; all where none is named.")


class ResponseOutput(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Scalar] = {}
    data: list[int | float | bool | None] | None = None


class InferenceResponse(BaseModel):
    # "model_" is the protocol's prefix, which pydantic would keep for itself.
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for the number of images.")
    parameters: dict[str, Scalar] = {}


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Scalar] = {}


class ServerLive(BaseModel):
    live: Literal[True]


class ServerReady(BaseModel):
    ready: Literal[True]


class ModelReady(BaseModel):
    name: str
    ready: Literal[True]
