"""The protocol's gRPC form: messages <-> inferences and metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from model.images import ImageFormat
from service.engine import Engine
from service.errors import FieldFault, InvalidInputError, MalformedBodyError
from service.inference_protocol import messages
from service.inference_protocol.inference import Inference, RequestedOutput
from service.inference_protocol.outputs import OUTPUTS, check_names
from service.inference_protocol.parameters import refuse_extensions, refuse_sequences, timeout_seconds
from service.inference_protocol.schemas import ModelMetadata, TensorMetadata
from service.inference_protocol.tensors import InputTensor, images_of
from service.judgements import Judgements

# Where typed contents hold a datatype, and the type that holds all of the field's values.
INPUT_CONTENTS: dict[str, tuple[str, np.dtype[Any]]] = {
    "FP32": ("fp32_contents", np.dtype(np.float32)),
    "UINT8": ("uint_contents", np.dtype(np.uint32)),
}
OUTPUT_CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}


def parse(message: Any, data: bytes) -> Any:
    """Raises MalformedBodyError."""
    try:
        return message.FromString(data)
    except DecodeError:
        raise MalformedBodyError(FieldFault("message", f"not a {message.DESCRIPTOR.name}")) from None


def decode(request: Any, image_format: ImageFormat, *, max_instances: int) -> Inference:
    """A ModelInferRequest's inference. Raises InvalidInputError naming the field."""
    parameters = _parameters(request.parameters)
    refuse_sequences(parameters)
    check_names(output.name for output in request.outputs)
    for kind, tensors in (("inputs", request.inputs), ("outputs", request.outputs)):
        for position, tensor in enumerate(tensors):
            refuse_extensions(f"{kind}[{position}]", tensor.parameters)
    raw = bool(request.raw_input_contents)
    names = [output.name for output in request.outputs] or list(OUTPUTS)
    return Inference(
        id=request.id or None,
        images=images_of(_tensors(request), image_format, max_instances=max_instances),
        outputs=[RequestedOutput(name, raw) for name in names],
        timeout_seconds=timeout_seconds(parameters),
    )


def encode(engine: Engine, inference: Inference, judgements: Judgements) -> Any:
    """A ModelInferResponse, raw where the request was."""
    response = messages.ModelInferResponse(
        model_name=engine.name, model_version=engine.version, id=inference.id or ""
    )
    for requested in inference.outputs:
        output = OUTPUTS[requested.name]
        array = output.array(judgements)
        tensor = response.outputs.add(name=requested.name, datatype=output.datatype, shape=array.shape)
        if requested.binary:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, OUTPUT_CONTENTS[output.datatype]).extend(array.ravel().tolist())
    return response


def model_metadata_message(metadata: ModelMetadata) -> Any:
    return messages.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=_tensor_metadata(metadata.inputs),
        outputs=_tensor_metadata(metadata.outputs),
    )


def _tensor_metadata(tensors: Sequence[TensorMetadata]) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape} for tensor in tensors]


def _tensors(request: Any) -> list[InputTensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            FieldFault(
                "raw_input_contents", f"{len(raw)} buffers for {len(request.inputs)} inputs; give one for each"
            )
        )
    return [
        InputTensor(
            field=f"inputs[{position}]",
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tensor.shape,
            data=_raw(position, tensor, raw[position]) if raw else _typed(tensor),
        )
        for position, tensor in enumerate(request.inputs)
    ]


def _raw(position: int, tensor: Any, data: bytes) -> bytes:
    if tensor.HasField("contents"):
        raise InvalidInputError(
            FieldFault(f"inputs[{position}].contents", "must be absent beside raw_input_contents")
        )
    return data


def _typed(tensor: Any) -> Any:
    """The field of the datatype; images_of refuses the others."""
    field, dtype = INPUT_CONTENTS.get(tensor.datatype, INPUT_CONTENTS["FP32"])
    contents = getattr(tensor.contents, field)
    return np.fromiter(contents, dtype, count=len(contents))


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in parameters.items()
    }
