"""A Triton model repository around a graph: NAME/config.pbtxt, NAME/labels.txt, NAME/1/model.onnx."""

import json
import re

from detectors.screener import Screener
from model.errors import ExportError

VERSION = "1"  # Triton's versions are whole numbers; the bundle's own stands in the parameters
LABELS = "labels.txt"
CONFIG = "config.pbtxt"
QUEUE_DELAY_MICROSECONDS = 2000  # the service's max_wait_seconds
SANE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

# A row's single value: Triton wants an axis beside the batch's, the graph has none.
SCALAR = "dims: [ 1 ]\n    reshape { shape: [ ] }"


def check_name(name: str) -> str:
    """The name itself. Raises ExportError for one that cannot be a folder's and a URL's part."""
    if not SANE_NAME.fullmatch(name):
        raise ExportError(f"{name!r} cannot name a model (letters, digits, '.', '_', '-'); give one with --name")
    return name


def write_config(screener: Screener, name: str, *, max_batch_size: int) -> str:
    """config.pbtxt for the ONNX backend, with dynamic batching up to max_batch_size images."""
    shape = ", ".join(map(str, screener.image_format.shape))
    outputs = [
        _output("class_index", "TYPE_INT64", SCALAR),
        _output("probabilities", "TYPE_FP32", f"dims: [ {len(screener.labels)} ]", f'label_filename: "{LABELS}"'),
        _output("log_likelihood", "TYPE_FP32", SCALAR),
        _output("p_value", "TYPE_FP32", SCALAR),
        _output("flagged", "TYPE_BOOL", SCALAR),
    ]
    parameters = {
        "bundle_name": screener.name,
        "bundle_version": screener.version,
        "false_alarm_rate": f"{screener.false_alarm_rate:g}",
    }
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size}",
        f'input [\n  {{\n    name: "images"\n    data_type: TYPE_FP32\n    dims: [ {shape} ]\n  }}\n]',
        "output [\n" + ",\n".join(outputs) + "\n]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}",
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def write_labels(screener: Screener) -> str:
    """One label a line, as Triton reads them for its classification extension."""
    return "".join(f"{' '.join(label.split())}\n" for label in screener.labels)


def _output(name: str, data_type: str, *further: str) -> str:
    lines = [f'name: "{name}"', f"data_type: {data_type}", *further]
    return "  {\n    " + "\n    ".join(lines) + "\n  }"
