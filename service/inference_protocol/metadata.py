"""What the server and a model say of themselves, to both transports."""

from importlib.metadata import version

from pydantic_core import to_json

from service.engine import Engine
from service.inference_protocol.outputs import OUTPUTS, Output
from service.inference_protocol.schemas import ModelMetadata, Scalar, ServerMetadata, TensorMetadata
from service.inference_protocol.tensors import DATATYPES, IMAGES
from service.runtime import Runtime

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "lgmguard_bundle"


def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="lgm-guard", version=version("lgm-guard"), extensions=EXTENSIONS)


def model_metadata(runtime: Runtime, engine: Engine) -> ModelMetadata:
    """The protocol has one datatype a tensor; the others it takes stand in its parameters.

    versions: all that are loaded and may be asked for, the active one first.
    """
    images = TensorMetadata(
        name=IMAGES,
        datatype="FP32",
        shape=[-1, *engine.image_format.shape],
        parameters={"datatypes": ",".join(DATATYPES), "minimum": 0, "maximum": 1},
    )
    return ModelMetadata(
        name=engine.name,
        versions=runtime.registry.versions(engine.name),
        platform=PLATFORM,
        inputs=[images],
        outputs=[_output(name, output, engine) for name, output in OUTPUTS.items()],
        parameters={"false_alarm_rate": engine.false_alarm_rate},
    )


def _output(name: str, output: Output, engine: Engine) -> TensorMetadata:
    parameters: dict[str, Scalar] = {}
    if output.columns is not None:  # parameters are scalars only, so the names are a JSON text
        parameters["columns"] = to_json(output.columns(engine)).decode()
    return TensorMetadata(name=name, datatype=output.datatype, shape=output.shape(engine), parameters=parameters)
