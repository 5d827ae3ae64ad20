"""The protocol's REST form: a body, JSON with or without binary tensors behind it, <-> inferences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from model.images import ImageFormat
from service.compression import decompress
from service.engine import Engine
from service.errors import FieldFault, InvalidInputError, MalformedBodyError
from service.inference_protocol.inference import Inference, RequestedOutput
from service.inference_protocol.outputs import OUTPUTS, check_names
from service.inference_protocol.parameters import refuse_extensions, refuse_sequences, timeout_seconds, truth
from service.inference_protocol.schemas import InferenceRequest, RequestInput
from service.inference_protocol.tensors import InputTensor, images_of
from service.judgements import Judgements

HEADER_LENGTH = "inference-header-content-length"
MOST_FAULTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a body is to be read: its compression, and the length of its JSON where binary tensors follow."""

    encoding: str
    header_length: int | None


def header_length(given: str | None) -> int | None:
    """The header's value. Raises MalformedBodyError where it is no length."""
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 18):
        raise MalformedBodyError(FieldFault(HEADER_LENGTH, f"{given[:64]!r} is no number of bytes"))
    return int(given)


def decode(
    body: bytes, form: Form, image_format: ImageFormat, *, max_body_bytes: int, max_instances: int
) -> Inference:
    """Raises MalformedBodyError, BodyTooLargeError, InvalidInputError, each naming its field."""
    body = decompress(body, form.encoding, max_bytes=max_body_bytes)
    length = len(body) if form.header_length is None else form.header_length
    if length > len(body):
        raise MalformedBodyError(FieldFault(HEADER_LENGTH, f"{length} bytes, but the body has {len(body)}"))
    request = _parse(body[:length])
    refuse_sequences(request.parameters)
    outputs = _requested(request)
    tensors = _with_data(request.inputs, memoryview(body)[length:])
    return Inference(
        id=request.id,
        images=images_of(tensors, image_format, max_instances=max_instances),
        outputs=outputs,
        timeout_seconds=timeout_seconds(request.parameters),
    )


def encode(engine: Engine, inference: Inference, judgements: Judgements) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where binary tensors follow."""
    buffers: list[Any] = []
    outputs = []
    for requested in inference.outputs:
        output = OUTPUTS[requested.name]
        array = output.array(judgements)
        told: dict[str, Any] = {"name": requested.name, "datatype": output.datatype, "shape": array.shape}
        if requested.binary:
            told["parameters"] = {"binary_data_size": array.nbytes}
            buffers.append(array.data)
        else:
            told["data"] = array.ravel().tolist()
        outputs.append(told)
    content = {"model_name": engine.name, "model_version": engine.version, "outputs": outputs}
    if inference.id is not None:
        content["id"] = inference.id
    header = to_json(content, inf_nan_mode="null")
    return (b"".join([header, *buffers]), len(header)) if buffers else (header, None)


def _parse(header: bytes) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(header)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        raise MalformedBodyError(FieldFault("body", problems[0]["msg"]))
    raise InvalidInputError(
        *(FieldFault(_path(problem["loc"]), problem["msg"]) for problem in problems[:MOST_FAULTS])
    )


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.removeprefix(".") or "body"


def _requested(request: InferenceRequest) -> Sequence[RequestedOutput]:
    by_default = truth("parameters", request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return [RequestedOutput(name, by_default) for name in OUTPUTS]
    check_names(output.name for output in request.outputs)
    for position, output in enumerate(request.outputs):
        refuse_extensions(f"outputs[{position}]", output.parameters)
    return [
        RequestedOutput(
            output.name,
            truth(f"outputs[{position}].parameters", output.parameters, "binary_data", default=by_default),
        )
        for position, output in enumerate(request.outputs)
    ]


def _with_data(inputs: Sequence[RequestInput], binary: memoryview) -> list[InputTensor]:
    """Each input with its own elements, or its share of the bytes behind the JSON, which must be used up."""
    tensors, offset = [], 0
    for position, given in enumerate(inputs):
        field = f"inputs[{position}]"
        refuse_extensions(field, given.parameters)
        size = _binary_size(field, given, left=len(binary) - offset)
        data = given.data if size is None else binary[offset : offset + size]
        offset += size or 0
        assert data is not None
        tensors.append(
            InputTensor(field=field, name=given.name, datatype=given.datatype, shape=given.shape, data=data)
        )
    if offset != len(binary):
        raise InvalidInputError(
            FieldFault("body", f"{len(binary) - offset} bytes more than the inputs' tensors take")
        )
    return tensors


def _binary_size(field: str, given: RequestInput, *, left: int) -> int | None:
    size = given.parameters.get("binary_data_size")
    if (size is None) == (given.data is None):
        raise InvalidInputError(FieldFault(field, "needs either data or parameters.binary_data_size"))
    if size is None:
        return None
    name = f"{field}.parameters.binary_data_size"
    if type(size) is not int or size < 0:
        raise InvalidInputError(FieldFault(name, "must be a number of bytes"))
    if size > left:
        raise InvalidInputError(FieldFault(name, f"{size} bytes, but {left} are left in the body"))
    return size
