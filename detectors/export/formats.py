"""The formats that a graph is written in, and how each is run again: ONNX by onnxruntime, .pt2 by torch.export."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from detectors.export.graph import INPUT, SIZES, Answers, Graph, NetworkGraph, ScoresGraph, ScreeningGraph, capture
from detectors.screener import Screener
from model.errors import ConfigurationError, ExportError

Run = Callable[[Tensor], Answers]
ONNX_LIMIT_BYTES = 2**31 - 2**20  # protobuf ends at 2 GiB, and the graph itself needs some


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format: its file's name and greatest size, what it needs, how a graph becomes it and runs again."""

    file: str
    limit_bytes: int | None
    packages: tuple[str, ...]
    libraries: tuple[str, ...]
    convert: Callable[[Graph], bytes]
    load: Callable[[Path], Run]


def find_format(name: str) -> Format:
    """Raises ConfigurationError for a format that does not exist or that lacks its packages."""
    if name not in FORMATS:
        raise ConfigurationError(f"unknown format {name!r}; there are {', '.join(FORMATS)}")
    found = FORMATS[name]
    missing = [package for package in found.packages if find_spec(package) is None]
    if missing:
        raise ConfigurationError(f"{name} needs {', '.join(missing)}: pip install 'lgm-guard[export]'")
    return found


def write(screener: Screener, chosen: Format, path: Path) -> None:
    """Raises ExportError naming the detector that does not convert, and where the file would be too large."""
    size = sum(values.nbytes for values in screener.state_dict().values())
    if chosen.limit_bytes is not None and size > chosen.limit_bytes:
        raise ExportError(f"bundle {screener.name} holds {size} bytes, {path.name} at most {chosen.limit_bytes}")
    with _quiet():
        try:
            content = chosen.convert(ScreeningGraph(screener))
        except Exception as error:  # torch raises whatever the operation that it does not know leads to
            raise _blame(screener, chosen, error) from None
    path.write_bytes(content)


def to_onnx(graph: Graph) -> bytes:
    """Whatever torch raises comes through."""
    converted = torch.onnx.export(
        capture(graph),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=list(graph.outputs),
        dynamic_shapes=SIZES,  # only for the axis' name
    )
    assert converted is not None  # it is not, where the program was captured beforehand
    content: bytes = converted.model_proto.SerializeToString()
    return content


def to_pt2(graph: Graph) -> bytes:
    """Whatever torch raises comes through."""
    buffer = io.BytesIO()
    torch.export.save(capture(graph), buffer)
    return buffer.getvalue()


def load_onnx(path: Path) -> Run:
    """Runs on the CPU with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Answers:
        found = session.run(list(Answers._fields), {INPUT: images.numpy()})
        return Answers(*map(torch.from_numpy, found))

    return run


def load_torch_export(path: Path) -> Run:
    """Needs torch and nothing of this package."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: Tensor) -> Answers:
        return Answers(**module(images))

    return run


FORMATS = {
    "onnx": Format(
        file="model.onnx",
        limit_bytes=ONNX_LIMIT_BYTES,
        packages=("onnx", "onnxscript", "onnxruntime"),
        libraries=("torch", "onnx", "onnxscript", "onnxruntime"),
        convert=to_onnx,
        load=load_onnx,
    ),
    "torch-export": Format(
        file="model.pt2",
        limit_bytes=None,
        packages=(),
        libraries=("torch",),
        convert=to_pt2,
        load=load_torch_export,
    ),
}


def _blame(screener: Screener, chosen: Format, error: Exception) -> ExportError:
    """Which part does not convert: the network, then each detector that decides, is tried alone."""
    parts: dict[str, Graph] = {"its network": NetworkGraph(screener)}
    parts |= {f"the detector {name!r}": ScoresGraph(screener, (name,)) for name in screener.fusion.names}
    for part, graph in parts.items():
        try:
            chosen.convert(graph)
        except Exception as found:
            return ExportError(f"bundle {screener.name}: {part} cannot be exported: {_reason(found)}")
    return ExportError(f"bundle {screener.name} cannot be exported: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The first line of what lies at the root: the exporters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters tell of themselves is for their own developers; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
