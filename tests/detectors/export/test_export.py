"""lgm export: graphs that say what their bundle says, in folders that Triton takes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import np_to_triton_dtype
from typer.testing import CliRunner

from detectors import SHIPPED_BUNDLE, Screener, load_bundle
from detectors.base import CleanBatches, Detector, Evidence
from detectors.export import formats, writing
from detectors.export.agreement import BATCH_SIZES, Agreement, compare, sample_images
from detectors.export.formats import FORMATS, find_format, load_onnx, to_onnx
from detectors.export.graph import Answers, ScoresGraph
from detectors.fusion import Fusion
from detectors.known import KNOWN_DETECTORS
from model.errors import ExportError
from service.cli import app

runner = CliRunner()


def export(screener: Screener, output: Path, *, images: Tensor | None = None, **options: Any) -> Agreement:
    chosen = sample_images(screener, 100) if images is None else images
    return writing.export(screener, output, images=chosen, source="test", **{"format_name": "onnx", **options})


def check_one_line(result: Any, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_every_detector_has_an_onnx_form_with_its_own_scores(
    whole_screener: Screener, images: Tensor, tmp_path: Path
) -> None:
    """The margin in nats: near the border its logarithm magnifies the rounding of log-densities."""
    path = tmp_path / "scores.onnx"
    path.write_bytes(to_onnx(ScoresGraph(whole_screener, tuple(KNOWN_DETECTORS))))
    found = onnxruntime.InferenceSession(path).run(list(KNOWN_DETECTORS), {"images": images.numpy()})
    evidence = whole_screener.screen(images).evidence
    for name, scores in zip(KNOWN_DETECTORS, found, strict=True):
        told, expected = torch.from_numpy(scores), evidence[name].score
        if name == "margin":
            torch.testing.assert_close((-told).exp(), (-expected).exp(), rtol=1e-4, atol=2e-5)
        else:
            torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def exported(format_name: str, digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, with real digits."""
    output = tmp_path_factory.mktemp("exports") / "triton"
    command = ["export", str(digits_bundle), "--format", format_name, "--output", str(output)]
    options = ["--check-data", "digits", "--name", "digit-reader", "--max-batch-size", "32"]
    result = runner.invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "0 classes differ" in result.stdout
    return output / "digit-reader"


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_any_batch_size_gives_what_the_bundle_says(
    exported: Path, format_name: str, digits_screener: Screener, images: Tensor, batch_size: int
) -> None:
    chosen = find_format(format_name)
    run = chosen.load(exported / "1" / chosen.file)
    found = Answers(*map(torch.cat, zip(*map(run, images.split(batch_size)), strict=True)))
    expected = digits_screener.screen(images)
    assert torch.equal(found.class_index, expected.class_index)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-5)
    assert int((found.p_value != expected.p_value).sum()) <= 0.01 * len(images)
    torch.testing.assert_close(found.p_value, expected.p_value, rtol=0, atol=0.02)
    assert torch.equal(found.flagged, found.p_value <= digits_screener.false_alarm_rate)


def test_the_record_says_what_it_is_and_how_far_it_agrees(
    exported: Path, format_name: str, digits_screener: Screener
) -> None:
    record = json.loads((exported / "export.json").read_text())
    assert record["bundle"] == {"name": "digits", "version": digits_screener.version}
    assert (exported.parent / record["file"]).is_file()
    assert record["checked_on"] == "digits, test images"
    assert record["agreement"]["num_images"] > 300
    assert record["agreement"]["num_classes_differ"] == record["agreement"]["num_p_values_wrong"] == 0
    assert set(record["libraries"]) == set(FORMATS[format_name].libraries)
    assert (exported / "labels.txt").read_text().splitlines() == list(digits_screener.labels)


def test_the_torch_file_needs_nothing_of_this_package(exported: Path, format_name: str) -> None:
    if format_name == "onnx":
        onnx.checker.check_model(onnx.load(exported / "1" / "model.onnx"), full_check=True)
        return
    code = (
        "import sys, torch; module = torch.export.load(sys.argv[1]).module();"
        "print(sorted(module(torch.zeros(3, 1, 8, 8)))); assert 'detectors' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(exported / "1" / "model.pt2")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        command, cwd=exported, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout == f"{sorted(Answers._fields)}\n"


def test_tritons_configuration_fits_the_graph(digits_screener: Screener, exported: Path, format_name: str) -> None:
    folder = exported
    if format_name != "onnx":
        assert not (folder / "config.pbtxt").exists()
        return
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.max_batch_size, config.backend) == (folder.name, 32, "onnxruntime")
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert config.parameters["bundle_version"].string_value == digits_screener.version
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    found = session.run(None, {"images": np.zeros((5, 1, 8, 8), np.float32)})
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in session.get_inputs()]
    assert [*config.input[0].dims] == session.get_inputs()[0].shape[1:]
    for tensor, output, array in zip(config.output, session.get_outputs(), found, strict=True):
        assert tensor.name == output.name
        assert ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[
            tensor.data_type
        ].name.removeprefix("TYPE_") == np_to_triton_dtype(array.dtype)
        shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        assert (5, *shape) == array.shape
        assert int(np.prod(tensor.dims)) == int(np.prod(array.shape[1:]))
    labelled = [tensor for tensor in config.output if tensor.label_filename]
    assert [(tensor.name, [*tensor.dims]) for tensor in labelled] == [("probabilities", [10])]
    assert len((folder / labelled[0].label_filename).read_text().splitlines()) == 10


class HandMade(Detector):
    """Fitted on nothing."""

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "Detector":
        return cls()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Detector":
        return cls()


class ChoosingDetector(HandMade):
    """Chooses in Python by what an image holds, which no graph can."""

    name = "choosing"

    def forward(self, evidence: Evidence) -> Tensor:
        return evidence.features[:, 0] if evidence.images.sum() > 0 else evidence.features[:, 1]


class SpectralDetector(HandMade):
    """The greatest singular value of an image: torch.export has it, ONNX has not."""

    name = "spectral"

    def forward(self, evidence: Evidence) -> Tensor:
        return torch.linalg.svdvals(evidence.images[:, 0])[:, 0]


@pytest.mark.parametrize(
    ("kind", "format_name"),
    [(ChoosingDetector, "torch-export"), (ChoosingDetector, "onnx"), (SpectralDetector, "onnx")],
)
def test_what_cannot_be_exported_is_refused_by_name(
    digits_bundle: Path, kind: type[HandMade], format_name: str, tmp_path: Path
) -> None:
    screener = load_bundle(digits_bundle)
    screener.detectors[kind.name] = kind()
    screener.fusion = Fusion((kind.name,), screener.fusion.surprise)
    with pytest.raises(ExportError, match=rf"the detector '{kind.name}' cannot be exported: .+"):
        export(screener, tmp_path / "out", format_name=format_name)
    assert list((tmp_path / "out").iterdir()) == []


class ChoosingBackbone(nn.Module):
    """Looks at the image in Python."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def tapped(self, images: Tensor) -> Any:
        return self.backbone.tapped(images if images.sum() > 0 else -images)


def test_a_network_that_cannot_be_exported_is_told_of(digits_bundle: Path, tmp_path: Path) -> None:
    screener = load_bundle(digits_bundle)
    screener.network.backbone = ChoosingBackbone(screener.network.backbone)
    with pytest.raises(ExportError, match=r"bundle digits: its network cannot be exported: .+"):
        formats.write(screener, find_format("torch-export"), tmp_path / "model.pt2")


def test_a_calibration_that_cannot_be_exported_is_told_of(digits_bundle: Path, tmp_path: Path) -> None:
    screener = load_bundle(digits_bundle)
    del screener.calibration.scores
    with pytest.raises(ExportError, match=r"bundle digits cannot be exported: .*scores"):
        formats.write(screener, find_format("torch-export"), tmp_path / "model.pt2")


def test_more_than_a_format_holds_is_refused_before_any_work(digits_screener: Screener, tmp_path: Path) -> None:
    small = replace(find_format("onnx"), limit_bytes=1000)
    with pytest.raises(ExportError, match=r"bundle digits holds \d+ bytes, model\.onnx at most 1000"):
        formats.write(digits_screener, small, tmp_path / "model.onnx")


def test_a_graph_that_says_something_else_is_found_out(digits_screener: Screener, images: Tensor) -> None:
    right = digits_screener.screen(images)
    answers = Answers(*(getattr(right, name) for name in Answers._fields))

    def lie(**changes: Any) -> Agreement:
        position = 0

        def run(batch: Tensor) -> Answers:
            nonlocal position
            rows = slice(position, position := position + len(batch))
            return Answers(*(column[rows] for column in answers._replace(**changes)))

        return compare(digits_screener, run, images)

    honest = lie()
    honest.check()
    assert honest == Agreement(
        num_images=len(images),
        batch_sizes=BATCH_SIZES,
        num_classes_differ=0,
        log_likelihood_error=0.0,
        probability_error=0.0,
        num_p_values_differ=0,
        num_p_values_wrong=0,
        p_value_error=0.0,
        num_flags_differ=0,
    )
    for changes, told in (
        ({"class_index": (answers.class_index + 1) % 10}, "predicted classes differ"),
        ({"log_likelihood": answers.log_likelihood * 1.001}, "log-likelihoods differ"),
        ({"log_likelihood": answers.log_likelihood * torch.nan}, "log-likelihoods differ"),
        ({"p_value": digits_screener.calibration(right.suspicion, right.class_index)}, "p-values differ by more"),
        ({"p_value": answers.p_value.flip(0)}, "p-values differ by more than ties"),
        ({"p_value": answers.p_value * torch.nan}, "p-values differ by more than ties"),
    ):
        with pytest.raises(ExportError, match=told):
            lie(**changes).check()


def test_a_wrong_table_is_found_out_even_where_the_check_shares_it(
    digits_bundle: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The p-values that a tie may lead to are those around the bundle's own, or the check is worth nothing."""
    screener = load_bundle(digits_bundle)
    monkeypatch.setattr(screener, "p_value", lambda suspicion, rows: screener.calibration(suspicion, rows))

    def run(batch: Tensor) -> Answers:
        said = screener.screen(batch)
        p_value = screener.p_value(said.suspicion, said.class_index)
        return Answers(said.class_index, said.probabilities, said.log_likelihood, p_value, p_value <= 0.05)

    with pytest.raises(ExportError, match="p-values differ by more than ties"):
        compare(screener, run, images).check()


def test_a_tie_explains_a_p_value(digits_screener: Screener, images: Tensor) -> None:
    """A suspicion that another processor rounds to the other side of a calibration score."""
    right = digits_screener.screen(images)
    moved = right.suspicion * (1 + 5e-4)
    p_value = digits_screener.p_value(moved, right.class_index)
    answers = Answers(right.class_index, right.probabilities, right.log_likelihood, p_value, p_value <= 0.05)
    rows = iter(range(len(images)))

    def run(batch: Tensor) -> Answers:
        chosen = [next(rows) for _ in batch]
        return Answers(*(column[chosen] for column in answers))

    agreement = compare(digits_screener, run, images)
    agreement.check()
    assert agreement.num_p_values_wrong == 0


def test_sample_images_are_the_same_each_time_and_start_with_the_reference(digits_screener: Screener) -> None:
    first, again = sample_images(digits_screener, 100), sample_images(digits_screener, 100)
    assert torch.equal(first, again)
    assert first.shape == (100, 1, 8, 8)
    assert first.aminmax() == (0, 1)
    assert digits_screener.reference is not None
    assert torch.equal(first[:8], digits_screener.reference.images / 255)
    assert len(torch.unique(digits_screener.screen(first).p_value)) > 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "tflite"], "unknown format 'tflite'; there are onnx, torch-export"),
        (["--name", "a/b"], "'a/b' cannot name a model"),
        (["--max-batch-size", "5000"], "max_batch_size must lie in 1..1024, got 5000"),
        (["--check-data", "nothing"], "name: Input should be 'mnist'"),
    ],
)
def test_what_is_wrong_is_one_line(digits_bundle: Path, tmp_path: Path, options: list[str], told: str) -> None:
    output = tmp_path / "out"
    check_one_line(runner.invoke(app, ["export", str(digits_bundle), "--output", str(output), *options]), told)
    assert not output.exists()


@pytest.mark.parametrize("format_name", FORMATS)
def test_images_of_another_shape_are_refused_before_any_work(format_name: str, tmp_path: Path) -> None:
    command = ["export", str(SHIPPED_BUNDLE), "--format", format_name, "--output", str(tmp_path / "out")]
    result = runner.invoke(app, [*command, "--check-data", "digits"])
    check_one_line(result, "--check-data: digits has images of shape (1, 8, 8); the model takes (1, 28, 28)")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    check_one_line(runner.invoke(app, ["export", str(digits_bundle), "--output", str(tmp_path)]), "is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_to_is_told(digits_screener: Screener, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file/out cannot be written: Not a directory"):
        export(digits_screener, tmp_path / "file" / "out")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, digits_bundle: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    result = runner.invoke(app, ["export", str(digits_bundle), "--output", str(tmp_path / "out")])
    check_one_line(result, "onnx needs onnx, onnxscript, onnxruntime: pip install 'lgm-guard[export]'")


def test_a_bundle_without_reference_images_needs_data(digits_bundle: Path) -> None:
    screener = load_bundle(digits_bundle)
    screener.reference = None
    with pytest.raises(Exception, match="has no reference images"):
        sample_images(screener, 10)


@pytest.mark.data
def test_the_shipped_bundle_on_a_thousand_digits(data_directory: Path, tmp_path: Path) -> None:
    command = ["export", str(SHIPPED_BUNDLE), "--output", str(tmp_path / "out"), "--check-data", "mnist"]
    result = runner.invoke(app, [*command, "--data-dir", str(data_directory), "--limit", "1000"])
    assert result.exit_code == 0, result.output
    agreement = json.loads((tmp_path / "out" / "mnist" / "export.json").read_text())["agreement"]
    assert agreement["num_images"] == 1000
    assert agreement["log_likelihood_error"] < 1e-5
    assert agreement["num_p_values_differ"] <= 10
    run = load_onnx(tmp_path / "out" / "mnist" / "1" / "model.onnx")
    assert run(torch.rand(64, 1, 28, 28)).flagged.all()
