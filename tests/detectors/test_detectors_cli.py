import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from detectors import Screener, load_bundle
from detectors.manifest import CARD, FILES, DataSplit, load_manifest
from model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from model.data import load_splits
from model.image_set import join
from service.cli import app
from tests.conftest import SEED
from tests.detectors.test_fitting import write_digits


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line that says why not, after whatever progress was shown."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def fitted(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("fitted") / "bundle"
    arguments = ("fit", digits_run, "--output", output, "--false-alarm-rate", "0.05", "--name", "digits-5")
    return output, invoke(*arguments, "--abnormal", "noise", "--abnormal", "inverted")


@pytest.fixture
def folder(digits_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    images = load_splits(digits_checkpoint.config.data).test.images
    for index in range(10):
        Image.fromarray(images[index, 0].numpy()).save(path / f"{index}.png")
    (path / "broken.png").write_bytes(b"broken")
    return path


def table_rows(card: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_fit_writes_a_bundle_that_loads_and_passes_its_self_test(fitted: tuple[Path, Result]) -> None:
    output, result = fitted
    assert result.exit_code == 0, result.output
    screener = load_bundle(output)
    screener.self_test()
    assert (screener.name, screener.false_alarm_rate) == ("digits-5", 0.05)
    assert screener.reference is not None
    assert len(screener.reference.images) == 16
    manifest = load_manifest(output)
    told = result.stdout.splitlines()[-1]
    assert f"{output}: digits-5 {screener.version}, accuracy {manifest.measured['accuracy']:.4f}" in told
    assert "0.05 promised" in told


def test_fit_measures_on_no_test_image_that_it_was_fitted_on_and_says_so(
    digits_run: Path, digits_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    data, output = tmp_path / "data", tmp_path / "bundle"
    write_digits(data / "train", splits.calibration)
    write_digits(data / "test", join(splits.test, splits.calibration.select(torch.arange(30))))
    given = ("--data", "image-folder", "--data-dir", data, "--false-alarm-rate", "0.1", "--abnormal", "digits")
    result = invoke("fit", digits_run, "--output", output, *given)
    assert "left out: 30 more test images" in result.stdout, result.output
    manifest = load_manifest(output)
    assert manifest.measured["num_images"] == len(splits.test)
    assert f"on {len(splits.test)} images" in (output / CARD).read_text(encoding="utf-8")
    assert manifest.measured["abnormal"]["digits"]["num_images"] == len(splits.test)


def test_what_is_foreign_is_read_before_anything_is_fitted(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.commands.fit.fit_screener", lambda *_, **__: pytest.fail("it was fitted"))
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    assert "wide.png" in refused("fit", digits_run, "--output", tmp_path / "bundle", "--abnormal", tmp_path)


def test_a_bundle_notes_how_its_data_were_parted(fitted: tuple[Path, Result]) -> None:
    assert load_manifest(fitted[0]).data == DataSplit(name="digits", split_seed=0, left_out=())


def test_the_card_s_figures_are_the_manifest_s(fitted: tuple[Path, Result]) -> None:
    output, _ = fitted
    card, manifest = (output / CARD).read_text(encoding="utf-8"), load_manifest(output)
    measured = manifest.measured
    assert f"Accuracy {measured['accuracy']:.2%} on {measured['num_images']:,} images" in card
    rows = table_rows(card)
    expected = {
        "all": measured["false_alarms"],
        **{f"predicted {name}": found for name, found in measured["false_alarms_by_class"].items()},
        **measured["abnormal"],
    }
    assert set(measured["abnormal"]) == {"noise", "inverted"}
    for name, found in expected.items():
        share = f"{found['num_flagged'] / found['num_images']:.2%}"
        interval = f"{found['low']:.2%} to {found['high']:.2%}"
        assert rows[name] == [f"{found['num_images']:,}", f"{found['num_flagged']:,}", share, interval]


def test_the_card_names_its_commands_and_how_it_was_made(fitted: tuple[Path, Result]) -> None:
    card = (fitted[0] / CARD).read_text(encoding="utf-8")
    assert card.startswith("# digits-5\n")
    (commands,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    assert commands.splitlines()[0] == "lgm train digits.toml"
    assert commands.splitlines()[1].split()[0] == "lgm"
    assert f"Seed {SEED}, 6 epochs" in card
    assert "10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), images of 8 x 8 pixels with 1 channel," in card
    assert "false-alarm rate of 5.00% for each predicted class" in card


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--false-alarm-rate", "0.0001"], "needs at least 9999"),
        (["--false-alarm-rate", "1.5"], r"must lie in \(0, 1\)"),
        (["--abnormal", "nose"], "neither noise, inverted"),
        (["--data", "imagenet"], "name: .*image-folder"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "LGM_DATA_DIR"),
        (["--device", "toaster"], "'toaster' is not known"),
        (["--detectors", "likelihod"], "unknown detector 'likelihod'; there are likelihood, "),
        (
            ["--beside", "layers"],
            "each named once, got .*, margin, layers",
        ),
        (["--detectors", ""], "at least one"),
        (["--beside", ","], "--beside: at least one"),
    ],
)
def test_fit_refuses_what_it_cannot_do_and_leaves_nothing(
    digits_run: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    rate = [] if "--false-alarm-rate" in arguments else ["--false-alarm-rate", "0.05"]
    error = refused("fit", digits_run, "--output", tmp_path / "bundle", *rate, *arguments)
    assert re.search(said, error), error
    assert not (tmp_path / "bundle").exists()


def test_fit_takes_other_detectors_and_others_beside_the_verdict(digits_run: Path, tmp_path: Path) -> None:
    chosen = ["--detectors", "likelihood,layers", "--beside", "energy,knn", "--false-alarm-rate", "0.05"]
    result = invoke("fit", digits_run, "--output", tmp_path / "bundle", *chosen)
    assert result.exit_code == 0, result.output
    screener = load_bundle(tmp_path / "bundle")
    assert tuple(screener.detectors) == ("likelihood", "layers", "energy", "knn")
    assert screener.fusion.names == ("likelihood", "layers")
    card = (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")
    assert "The verdict fuses likelihood and layers; energy and knn stand beside it." in card


def test_fit_names_an_unknown_abnormal_set_before_it_reads_the_checkpoint(tmp_path: Path) -> None:
    error = refused("fit", tmp_path / "none", "--output", tmp_path / "bundle", "--abnormal", "nose")
    assert "neither noise, inverted" in error


def test_fit_refuses_an_output_before_it_even_reads_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error = refused("fit", tmp_path / "none", "--output", tmp_path)
    assert "is not empty" in error


def test_fit_refuses_a_missing_and_an_unfinished_checkpoint(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert "no checkpoint there" in refused("fit", tmp_path / "none", "--output", tmp_path / "bundle")
    values = {field: getattr(digits_checkpoint, field) for field in digits_checkpoint.__slots__}
    save_checkpoint(Checkpoint(**{**values, "epoch": 3, "test_accuracy": None}), tmp_path / FILE_NAME)
    error = refused("fit", tmp_path, "--output", tmp_path / "bundle")
    assert "stopped after epoch 3 of 6" in error


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_screen_judges_a_folder(digits_bundle: Path, folder: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"judged{ending}"
    result = invoke("screen", digits_bundle, folder, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "11 images" in result.stderr
    assert "1 could not be read" in result.stderr
    if ending == ".parquet":
        rows = parquet.read_table(output).to_pylist()
    else:
        with output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == [*(f"{index}.png" for index in range(10)), "broken.png"]
    assert [bool(row["error"]) for row in rows] == [False] * 10 + [True]


def test_screen_writes_csv_to_standard_output_alone(digits_bundle: Path, folder: Path) -> None:
    result = invoke("screen", digits_bundle, folder / "0.png", folder / "1.png", "--limit", "1")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["image"] for row in rows] == [str(folder / "0.png")]
    assert "1 images" in result.stderr


def test_screen_judges_a_data_set(digits_bundle: Path, tmp_path: Path) -> None:
    result = invoke(
        "screen", digits_bundle, "--data", "digits", "--limit", 300, "--output", tmp_path / "judged.parquet"
    )
    assert result.exit_code == 0, result.output
    rows = parquet.read_table(tmp_path / "judged.parquet").to_pylist()
    assert len(rows) == 300
    assert sum(row["label"] == row["true_label"] for row in rows) > 285


def test_screen_brings_a_folder_of_classes_to_the_bundle_s_channels(digits_bundle: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    result = invoke("screen", digits_bundle, "--data", "image-folder", "--data-dir", tmp_path / "data")
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["true_label"] for row in rows] == ["cat", "cat", "dog", "dog"]


def test_screen_fails_where_nothing_could_be_read(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    result = invoke("screen", digits_bundle, broken, "--output", tmp_path / "judged.csv")
    assert (result.exit_code, "1 could not be read" in result.stderr) == (1, True)
    assert "not an image" in (tmp_path / "judged.csv").read_text()
    assert invoke("screen", digits_bundle, broken, folder / "0.png").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name either image files and folders, or a data set"),
        (["{folder}", "--data", "digits"], "name either"),
        (["{folder}/none.png"], "does not exist"),
        (["{folder}", ""], "an empty path names no file"),
        (
            ["{folder}", "photos.parquet"],
            "photos.parquet: Parquet files are judged with --engine ray; --image-column",
        ),
        (["{folder}", "--output", "{folder}/judged.txt"], r"must end in \.csv or \.parquet"),
        (["{folder}", "--output", "{folder}/none/judged.csv"], "is not a folder"),
        (["{folder}", "--device", "cuda:99"], "is not there"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "LGM_DATA_DIR"),
    ],
)
def test_screen_refuses_what_it_cannot_do(digits_bundle: Path, folder: Path, arguments: list[str], said: str) -> None:
    before = sorted(folder.iterdir())
    error = refused("screen", digits_bundle, *(argument.format(folder=folder) for argument in arguments))
    assert re.search(said, error), error
    assert sorted(folder.iterdir()) == before


def test_screen_refuses_an_output_before_it_loads_the_bundle(tmp_path: Path, folder: Path) -> None:
    error = refused("screen", tmp_path / "none", folder, "--output", tmp_path / "judged.txt")
    assert "must end in .csv or .parquet" in error


def test_screen_refuses_a_changed_bundle(tmp_path: Path, folder: Path) -> None:
    error = refused("screen", tmp_path, folder)
    assert "bundle.json cannot be read" in error


@pytest.mark.data
def test_screen_refuses_a_data_set_of_another_shape_and_leaves_no_file(
    digits_bundle: Path, data_directory: Path, tmp_path: Path
) -> None:
    output = tmp_path / "judged.csv"
    error = refused("screen", digits_bundle, "--data", "mnist", "--data-dir", data_directory, "--output", output)
    assert "mnist has images of shape (1, 28, 28); the model takes (1, 8, 8)" in error
    assert list(tmp_path.iterdir()) == []


def test_describe_tells_a_bundle_as_json(digits_bundle: Path, digits_screener: Screener) -> None:
    facts = json.loads(invoke("describe", digits_bundle, "--json").stdout)
    assert facts["version"] == digits_screener.version
    assert facts["labels"] == list("0123456789")
    assert facts["measured"]["accuracy"] > 0.95
    assert facts["false_alarm_rate"] == 0.05


def test_describe_tells_a_checkpoint_as_json(digits_run: Path) -> None:
    for path in (digits_run, digits_run / FILE_NAME):
        facts = json.loads(invoke("describe", path, "--json").stdout)
        assert facts["classes"] == list("0123456789")
        assert facts["epochs"] == "6 of 6"
        assert facts["test_accuracy"] == load_checkpoint(digits_run).test_accuracy
        assert facts["config"]["training"]["seed"] == SEED


def test_describe_tells_a_person(digits_bundle: Path, digits_run: Path, digits_screener: Screener) -> None:
    assert digits_screener.version in invoke("describe", digits_bundle).stdout
    assert "6 of 6" in invoke("describe", digits_run).stdout


def test_describe_points_from_a_file_of_a_bundle_to_its_folder(digits_bundle: Path) -> None:
    for name in FILES:
        error = refused("describe", digits_bundle / name)
        assert error == f"error: {digits_bundle / name} is part of a bundle; name its folder, {digits_bundle}"


def test_describe_refuses_what_is_neither(tmp_path: Path) -> None:
    assert "no checkpoint there" in refused("describe", tmp_path)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "fit",
            ["--output", "--data-dir", "$LGM_DATA_DIR", "--false-alarm-rate", "--abnormal", "the run's by default"],
        ),
        ("screen", ["--output", "--limit", ".parquet", "standard output"]),
        ("describe", ["--json"]),
    ],
)
def test_every_command_has_help(command: str, options: list[str]) -> None:
    result = invoke(command, "--help")
    told = " ".join(re.sub(r"[│\s]+", " ", result.stdout).split())
    assert result.exit_code == 0
    assert [option for option in options if option not in told] == []
