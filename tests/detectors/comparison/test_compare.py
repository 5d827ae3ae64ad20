"""A whole comparison on digits, small: what it leaves, how it goes on, and what it refuses."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from detectors.comparison.carrying_out import FAILED, carry_out
from detectors.comparison.cli import compare
from detectors.comparison.judging import Row, _victim, judge, look, with_fitted_gaussians
from detectors.comparison.pictures import LARGEST_FILE
from detectors.comparison.planning import Run, plan, training_folder
from detectors.comparison.settings import Abnormal, ComparisonError, load_comparison
from detectors.comparison.summaries import summarise
from model.checkpoint import load_checkpoint
from model.config import DataConfig
from model.criterion import restore_criterion
from model.data import Splits, load_splits
from model.errors import CheckpointError, ConfigurationError, ImageError, LGMGuardError
from model.image_set import to_unit
from tests.commands import alone

COMPARISONS = Path(__file__).parents[3] / "model" / "comparisons"
TOML = """
name = "tiny"
[training]
data = { name = "digits", num_images = 400, calibration_fraction = 0.3 }
network = { backbone = "small28", width = 4, num_features = 8 }
optimizer = { learning_rate = 0.05 }
training = { epochs = 1, batch_size = 32 }
[abnormal]
attacks = ["fgsm"]
eps = 0.2
foreign = ["noise"]
limit = 60
num_pairs = 100
[[experiments]]
name = "plane"
title = "Plane <of two>"
losses = ["softmax", "lgm"]
changes = { "network.num_features" = 2 }
[[experiments]]
name = "losses"
title = "Losses"
losses = ["softmax", "distillation", "gm", "lgm"]
seeds = [0, 1]
fitted = true
[[experiments]]
name = "grid"
title = "Grid"
losses = ["lgm"]
grid = { "loss.alpha" = [0.0, 0.5], "loss.lambda" = [0.0, 0.1] }
[[experiments]]
name = "verification"
title = "Verification"
losses = ["lgm"]
changes = { "data.left_out" = ["8", "9"] }
"""


class Watched:
    """Which runs were trained and judged, by their epochs."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.finished: list[str] = []

    def start(self, run: Run, number: int, total: int) -> None:
        """Nothing."""

    def epoch(self, run: Run, done: float) -> None:
        if run.key not in self.trained:
            self.trained.append(run.key)

    def finish(self, run: Run, row: Row) -> None:
        self.finished.append(run.key)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(alone(compare), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="module")
def compared(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compared") / "out"
    result = invoke(toml, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(output / "report.html")
    return output


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((output / "results.json").read_text())["rows"]
    return rows


def test_every_run_has_its_row(compared: Path) -> None:
    rows = rows_of(compared)
    assert len(rows) == 2 + 8 + 4 + 4 + 1
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["noise_auroc"] <= 1
        assert 0 <= row["realised_fpr"] <= 1
        assert row["training_seconds"] > 0
        assert ("verification_accuracy" in row) == (row["experiment"] == "verification")
    grid = [(row["loss.alpha"], row["loss.lambda"]) for row in rows if row["experiment"] == "grid"]
    assert grid == [(0.0, 0.0), (0.0, 0.1), (0.5, 0.0), (0.5, 0.1)]


def test_the_table_holds_the_rows(compared: Path) -> None:
    with (compared / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(rows_of(compared), table, strict=True):
        assert line["variant"] == row["variant"]
        assert float(line["accuracy"]) == row["accuracy"]


def test_the_report_stands_alone_and_tells_all(compared: Path) -> None:
    report = (compared / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link", report)
    assert "Plane &lt;of two&gt;" in report
    assert "lgm alpha=0.5 lambda=0.1" in report
    assert report.count("<svg") == 3  # planes, intervals, grid
    assert "Reference: lgm." in report
    assert "Mean ranks in accuracy: " in report


def test_tables_and_pictures_are_ready_for_a_readme(compared: Path) -> None:
    tables = (compared / "tables.md").read_text(encoding="utf-8")
    rows = [row for row in rows_of(compared) if row["variant"] == "lgm, fitted"]
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    assert re.search(rf"^\| lgm, fitted \| {mean:.2%}", tables, re.MULTILINE)
    assert re.search(r"^Mean ranks in accuracy, 1 best: ", tables, re.MULTILINE)
    assert "Means of 2 seeds ± half of the 95 % t-interval; * differs from lgm (" in tables
    for block in re.findall(r"(?:^\|.*\n)+", tables, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    pictures = re.findall(r"!\[.+\]\((.+)\)", tables)
    assert pictures == ["plane-planes.webp", "losses-intervals.webp", "grid-grids.webp"]
    for picture in pictures:
        assert (compared / picture).stat().st_size <= LARGEST_FILE
        with Image.open(compared / picture) as image:
            assert image.format == "WEBP"
            assert len(image.getcolors(maxcolors=2**24) or []) > 100


def test_the_same_command_again_trains_nothing(toml: Path, compared: Path) -> None:
    before = rows_of(compared)
    comparison, watched = load_comparison(toml), Watched()
    rows = carry_out(plan(comparison, compared), comparison.abnormal, compared, watched)
    assert watched.trained == []
    assert rows == before


def test_an_interrupted_comparison_goes_on(toml: Path, compared: Path, tmp_path: Path) -> None:
    """A run whose row and checkpoint are not there yet is trained, and comes out as it did."""
    comparison, watched = load_comparison(toml), Watched()
    runs = plan(comparison, tmp_path, only=["grid"])
    first = carry_out(runs[:2], comparison.abnormal, tmp_path, Watched())
    rows = carry_out(runs, comparison.abnormal, tmp_path, watched)
    assert watched.trained == [run.key for run in runs[2:]]
    assert rows[:2] == first
    expected = [row for row in rows_of(compared) if row["experiment"] == "grid"]
    for found, other in zip(rows, expected, strict=True):
        assert {**found, "training_seconds": 0} == {**other, "training_seconds": 0}


def test_the_same_data_are_loaded_once(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def counted(config: DataConfig) -> Splits:
        loaded.append(config)
        return load_splits(config)

    for module in ("detectors.comparison.judging", "model.train"):
        monkeypatch.setattr(f"{module}.load_splits", counted)
    comparison = load_comparison(toml)
    runs = plan(comparison, tmp_path, only=["grid"])[:2]
    assert len(carry_out(runs, comparison.abnormal, tmp_path, Watched())) == 2
    assert loaded == [runs[0].config.data]


def test_other_images_under_the_same_path_are_not_told_by_old_figures(tmp_path: Path) -> None:
    digits = load_splits(DataConfig(name="digits")).test
    for index, (pixels, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        folder = tmp_path / "images" / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(folder / f"{index}.png")
    data = f'{{ name = "image-folder", directory = "{tmp_path}/images", calibration_fraction = 0.3 }}'
    path = tmp_path / "tiny.toml"
    path.write_text(re.sub(r"data = \{.*\}", f"data = {data}", TOML, count=1))
    comparison = load_comparison(path)
    runs = plan(comparison, tmp_path / "out", only=["grid"])[:1]
    carry_out(runs, comparison.abnormal, tmp_path / "out", Watched())
    Image.new("L", (8, 8), 200).save(tmp_path / "images" / "0" / "other.png")
    with pytest.raises(CheckpointError, match="was trained on other train images than those found now"):
        carry_out(runs, comparison.abnormal, tmp_path / "out", Watched())


def test_other_abnormal_images_are_judged_anew_without_training(toml: Path, compared: Path) -> None:
    comparison, watched = load_comparison(toml), Watched()
    runs = plan(comparison, compared, only=["verification"])
    kept = (compared / "rows" / f"{runs[0].key}.json").read_bytes()
    changed = replace(comparison.abnormal, foreign=("inverted",))
    (row,) = carry_out(runs, changed, compared, watched)
    assert watched.trained == []
    assert "inverted_auroc" in row
    assert "noise_auroc" not in row
    (compared / "rows" / f"{runs[0].key}.json").write_bytes(kept)


def test_a_run_that_diverges_is_told_and_the_others_go_on(toml: Path, tmp_path: Path) -> None:
    comparison = load_comparison(toml)
    runs = plan(comparison, tmp_path, only=["plane"])
    wild = replace(runs[0].config.optimizer, learning_rate=1e30, warmup_epochs=0.0)
    broken = replace(runs[0], config=replace(runs[0].config, optimizer=wild))
    watched = Watched()
    rows = carry_out([broken, runs[1]], comparison.abnormal, tmp_path, watched)
    assert "no longer finite" in rows[0][FAILED]
    assert len(watched.finished) == 2
    summary = summarise(runs[0].experiment, rows)
    assert summary.failed.keys() == {"softmax, seed 0"}
    assert summary.variants["softmax"] == {}
    assert summary.variants["lgm"]["accuracy"].mean == rows[1]["accuracy"]


def test_a_comparison_without_a_figure_is_an_error(toml: Path, tmp_path: Path) -> None:
    wild = ("training.optimizer.learning_rate=1e30", "training.optimizer.warmup_epochs=0")
    error = invoke(
        toml, "--output", tmp_path, "--only", "plane", *(word for one in wild for word in ("--set", one))
    ).exception
    assert isinstance(error, ComparisonError)
    assert re.search("no training came to figures.*no longer finite", str(error))


def test_an_attack_goes_through_the_losss_own_classifier(toml: Path, compared: Path) -> None:
    """The victim's scores are those that are attacked; the network itself stays as it was."""
    comparison = load_comparison(toml)
    run = plan(comparison, compared, only=["losses"])[0]
    checkpoint = load_checkpoint(training_folder(compared, run.training_key))
    network = checkpoint.build_network()
    criterion, images = restore_criterion(checkpoint, network), to_unit(load_splits(run.config.data).test.images[:20])
    victim = _victim(network, criterion)
    with torch.no_grad():
        features = network.embed(images)
        assert not isinstance(criterion.logits, torch.Tensor)
        torch.testing.assert_close(victim(images).log_joint, criterion.logits(features))
        torch.testing.assert_close(network(images).log_joint, network.mixture(features))


def test_figures_are_those_of_the_network(toml: Path, compared: Path) -> None:
    comparison = load_comparison(toml)
    run = [run for run in plan(comparison, compared, only=["losses"]) if run.variant == "lgm"][-1]
    checkpoint = load_checkpoint(training_folder(compared, run.training_key))
    splits = load_splits(run.config.data)
    row = judge(run, checkpoint, splits, Abnormal(foreign=("noise",), limit=50))
    assert row["accuracy"] == row["gaussian_accuracy"] == pytest.approx(checkpoint.test_accuracy)
    network = checkpoint.build_network()
    scores = look(network, splits.test.images).score
    assert row["log_likelihood"] == pytest.approx(-scores.mean())
    threshold = np.quantile(look(network, splits.calibration.images).score, 0.95, method="higher")
    assert row["realised_fpr"] == np.mean(scores > threshold)
    assert row["detection"] == row["noise_auroc"]
    harmless = Abnormal(attacks=("fgsm",), eps=1e-9, foreign=("noise",), limit=50)
    feeble = judge(run, checkpoint, splits, harmless)
    assert (feeble["fgsm_auroc"], feeble["detection"]) == (None, None)  # not the mean of what is left


def test_gaussian_losses_are_judged_by_fitted_gaussians_too(toml: Path, compared: Path) -> None:
    """The same training and classifier, other Gaussians: those that a rival's features would get."""
    rows = {(row["variant"], row["seed"]): row for row in rows_of(compared) if row["experiment"] == "losses"}
    for name in ("gm", "lgm"):
        for seed in (0, 1):
            own, fitted = rows[name, seed], rows[f"{name}, fitted", seed]
            for figure in ("accuracy", "calibration_error", "fgsm_accuracy", "scatter_ratio", "training_seconds"):
                assert own[figure] == fitted[figure]
            assert own["log_likelihood"] != fitted["log_likelihood"]
    assert not any(variant == "softmax, fitted" for variant, _ in rows)
    assert sorted(path.name for path in (compared / "runs" / "losses").glob("gm*")) == ["gm-seed0", "gm-seed1"]
    run = next(run for run in plan(load_comparison(toml), compared, only=["losses"]) if run.fitted)
    checkpoint = load_checkpoint(training_folder(compared, run.training_key))
    train = load_splits(run.config.data).train
    mixture = with_fitted_gaussians(checkpoint.build_network(), train).mixture
    features = look(checkpoint.build_network(), train.images).features
    own = features[train.labels == 3]
    torch.testing.assert_close(mixture.means[3], own.mean(0), rtol=1e-4, atol=1e-5)
    variances = own.var(0, correction=0).clamp_min(mixture.variance_floor)
    assert mixture.log_variances is not None
    torch.testing.assert_close(mixture.log_variances[3].exp(), variances, rtol=2e-2, atol=1e-4)


def refused(text: str, tmp_path: Path, *arguments: str) -> LGMGuardError:
    (tmp_path / "wrong.toml").write_text(text)
    error = invoke(tmp_path / "wrong.toml", "--output", tmp_path / "out", *arguments).exception
    assert isinstance(error, LGMGuardError), error
    assert not (tmp_path / "out").exists()
    return error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"softmax", "distillation"', '"distillation", "softmax"', "teacher softmax must come before it"),
        ('"gm", "lgm"', '"gm", "hinge"', r"loss\.name 'hinge' does not exist"),
        ("eps = 0.2", "eps = 2.0", r"abnormal\.eps: Input should be less than or equal to 1"),
        ('["fgsm"]', '["hope"]', "unknown attack 'hope'"),
        ("seeds = [0, 1]", "seeds = []", r"experiments\.1\.seeds"),
        ("seeds = [0, 1]", "seeds = [1, 1]", r"experiments\.1\.seeds: .*1 twice is the same run twice"),
        ('"gm", "lgm"', '"gm", "gm"', r"experiments\.1\.losses: .*'gm' twice is the same run twice"),
        ("[0.0, 0.5]", "[0.5, 0.5]", r"experiments\.2\.grid\.loss\.alpha: .*0\.5 twice is the same run twice"),
        ('"loss.alpha" = [', '"training.seed" = [', r"experiments\.2\.grid: .*training\.seed is set by .* seeds"),
        ('"network.num_features"', '"training.seed"', r"experiments\.0\.changes: .*training\.seed is set by"),
        (
            "seeds = [0, 1]",
            'options = { gm = { "training.seed" = 3 } }',
            r"experiments\.1\.options\.gm: .*training\.seed is set by",
        ),
        ("seeds = [0, 1]", 'reference = "adam"', "reference 'adam' is none of softmax, distillation, gm, lgm"),
        ("seeds = [0, 1]", "options = { arcface = {} }", "options for arcface, which is not among its losses"),
        ('name = "grid"', 'name = "plane"', "experiments need names of their own"),
        ("epochs = 1", "epoch = 1", r"training\.epoch"),
        ("training = { epochs = 1, batch_size = 32 }", "training = 3", "training must be a table, got 3"),
        ("seeds = [0, 1]", "seeds = 3", r"experiments\.1\.seeds: must be an array$"),
        ('"loss.alpha" = [', '"loss.margin" = [', r"loss\.margin: lgm has no such option"),
        ('title = "Grid"', "", r"experiments\.2\.title: Field required"),
        ('"data.left_out" = ["8", "9"]', '"data.left_out" = ["8"]', r"verification: data\.left_out must name two"),
        ('foreign = ["noise"]', 'foreign = ["moon"]', "abnormal set 'moon' is neither noise, inverted"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    assert old in TOML
    assert re.search(said, str(refused(TOML.replace(old, new), tmp_path)))


@pytest.mark.parametrize(
    ("experiments", "said"),
    [
        ("[[experiments]]\nsees = 1", r"experiments\.0\.name: Field required; .*experiments\.0\.sees: Unexpected"),
        (
            "[experiments.plane]\nlosses = []",
            r"experiments: must be an array of tables, \[\[experiments\]\]$",
        ),
        ("experiments = []", "experiments: Tuple should have at least 1 item"),
    ],
)
def test_refused_experiments_are_told_of_by_what_is_wrong_alone(experiments: str, said: str, tmp_path: Path) -> None:
    error = str(refused(f"name = 'tiny'\n{experiments}\n[training]", tmp_path))
    assert re.search(said, error), error
    assert "at least 1" not in error or "= []" in experiments


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experiments.sphere.seeds=[0]", r"must be experiments\.NAME\.key=value; NAME is one of plane, losses, grid"),
        ("experiments.plane=0", r"must be experiments\.NAME\.key=value"),
        ("experiments.grid.seeds=0", r"experiments\.2\.seeds"),
        ("training.training.epochs=0", r"training\.epochs: Input should be greater than or equal to 1"),
        ("training.epochs=1", r"(?s)epochs: .*nexpected keyword"),
        ("abnormal.limit", r"must look like table\.key=value"),
        ("abnormal.limit=9", r"abnormal\.limit: Input should be greater than or equal to 10"),
    ],
)
def test_an_override_that_changes_nothing_sound_is_refused(override: str, said: str, tmp_path: Path) -> None:
    assert re.search(said, str(refused(TOML, tmp_path, "--set", override)))


def test_overrides_change_the_file(toml: Path, tmp_path: Path) -> None:
    overrides = ["experiments.losses.seeds=[4]", "training.training.epochs=3", "abnormal.limit=12"]
    comparison = load_comparison(toml, overrides)
    runs = plan(comparison, tmp_path)
    assert comparison.abnormal.limit == 12
    assert {run.config.training.epochs for run in runs} == {3}
    assert {run.seed for run in runs if run.experiment.name == "losses"} == {4}
    assert {run.seed for run in runs if run.experiment.name == "grid"} == {0}


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    error = refused(TOML, tmp_path, "--only", "plane,sphere")
    assert isinstance(error, ComparisonError)
    assert "there is no experiment 'sphere'; there are plane, losses" in str(error)


def test_experiments_of_commas_alone_are_not_all_of_them(tmp_path: Path) -> None:
    assert "--only: at least one" in str(refused(TOML, tmp_path, "--only", ","))


def test_an_output_that_is_a_file_is_refused_before_any_training(toml: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    error = invoke(toml, "--output", tmp_path / "taken").exception
    assert isinstance(error, ComparisonError)
    assert "taken/rows cannot be made: Not a directory; choose another --output" in str(error)


def test_foreign_images_of_another_shape_are_refused_before_any_training(toml: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    comparison, watched = load_comparison(toml, [f"abnormal.foreign=['{tmp_path}']"]), Watched()
    with pytest.raises(ImageError, match=r"one\.png"):
        carry_out(plan(comparison, tmp_path / "out"), comparison.abnormal, tmp_path / "out", watched)
    assert watched.trained == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        load_comparison(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(COMPARISONS.glob("*.toml")), ids=lambda path: path.stem)
def test_committed_comparisons_can_be_planned(path: Path, tmp_path: Path) -> None:
    runs = plan(load_comparison(path), tmp_path)
    assert len({run.key for run in runs}) == len(runs) >= 14
