import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from detectors.bundle import save_bundle
from detectors.commands.options import data_for
from detectors.evaluation.attacks import AttackError
from detectors.evaluation.cli import REFUSED, evaluate
from detectors.evaluation.settings import EvaluationError
from detectors.fitting import fit_screener
from detectors.manifest import DataSplit, load_manifest
from detectors.screener import Screener
from model.checkpoint import Checkpoint
from model.config import DataConfig
from model.data import load_splits
from model.errors import ConfigurationError, LGMGuardError
from model.folder_lock import alone_in
from model.image_set import join
from tests.commands import alone
from tests.detectors.evaluation.test_report import Page


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(alone(evaluate), [str(argument) for argument in arguments])


def refused(*arguments: object) -> LGMGuardError:
    error = invoke(*arguments).exception
    assert isinstance(error, LGMGuardError), error
    return error


def run_fgsm_and_bim(bundle: Path, output: Path) -> Result:
    return invoke(
        bundle, "--data", "digits", "--attacks", "fgsm,bim", "--eps", "0.1,0.2", "--limit", 60, "--output", output
    )


@pytest.fixture(scope="module")
def ran(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("evaluated") / "out"
    return output, run_fgsm_and_bim(digits_bundle, output)


def test_one_command_prints_a_table_and_writes_results_and_a_report(ran: tuple[Path, Result]) -> None:
    output, result = ran
    assert result.exit_code == 0, result.output
    for told in ("fgsm", "bim", "AUROC", "TPR@5%", "SR@5", "self-checks", "Clean images", "report.html"):
        assert told in result.stdout
    results = json.loads((output / "results.json").read_text())
    fused = [row for row in results["rows"] if row["detector"] == "fused"]
    assert [(row["attack"], row["eps"]) for row in fused] == [
        ("fgsm", 0.1),
        ("fgsm", 0.2),
        ("bim", 0.1),
        ("bim", 0.2),
    ]
    assert all(row["num_clean"] == row["num_adversarial"] == 60 for row in fused)
    by_case = {(row["attack"], row["eps"]): row["attacked_accuracy"] for row in fused}
    assert by_case[("bim", 0.2)] < by_case[("fgsm", 0.2)] < by_case[("fgsm", 0.1)] < 0.95
    page = Page((output / "report.html").read_text())
    assert (page.open, page.faults) == ([], [])


def test_repeating_the_command_takes_what_is_there(digits_bundle: Path, ran: tuple[Path, Result]) -> None:
    output, _ = ran
    before = json.loads((output / "results.json").read_text())
    assert run_fgsm_and_bim(digits_bundle, output).exit_code == 0
    assert json.loads((output / "results.json").read_text())["rows"] == before["rows"]


def test_other_settings_in_the_same_folder_are_refused_before_any_work(
    digits_bundle: Path, ran: tuple[Path, Result]
) -> None:
    output, _ = ran
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    error = refused(digits_bundle, "--data", "digits", "--attacks", "fgsm", "--eps", "0.1", "--output", output)
    assert "holds another run" in str(error)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_two_runs_at_once_do_not_share_a_folder(digits_bundle: Path, ran: tuple[Path, Result]) -> None:
    output, _ = ran
    with alone_in(output):
        assert "another process is at work" in str(run_fgsm_and_bim(digits_bundle, output).exception)


def test_two_runs_are_compared(ran: tuple[Path, Result], tmp_path: Path) -> None:
    output, _ = ran
    result = invoke("--compare", output, output / "results.json", "--output", tmp_path / "both")
    assert result.exit_code == 0, result.output
    assert "difference" in result.stdout
    page = Page((tmp_path / "both" / "comparison.html").read_text())
    assert (page.open, page.faults) == ([], [])
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["differences"]
    assert invoke("--compare", output, output).exit_code == 0


def test_figures_that_the_checks_refuse_end_in_a_status_of_their_own(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A screener left in training mode."""
    monkeypatch.setattr(Screener, "eval", nn.Module.train)
    result = invoke(
        digits_bundle,
        "--data",
        "digits",
        "--attacks",
        "fgsm",
        "--eps",
        0.1,
        "--limit",
        20,
        "--output",
        tmp_path / "out",
    )
    assert result.exit_code == REFUSED
    assert "Do not rely on these figures" in result.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == []
    assert "Do not rely" in (tmp_path / "out" / "report.html").read_text()


def test_fractions_are_budgets(digits_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("--attacks", "fgsm", "--eps", "8/255, 0.1", "--limit", 20, "--output", output)
    assert invoke(digits_bundle, "--data", "digits", *arguments).exit_code == 0
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert {row["eps"] for row in rows} == {8 / 255, 0.1}


def test_without_attacks_the_clean_images_alone_are_measured(digits_bundle: Path, tmp_path: Path) -> None:
    result = invoke(digits_bundle, "--data", "digits", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "flagged where at most" in result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"] == []
    assert {row["promise"] for row in results["clean"]} >= {0.05, 0.01}
    assert "False alarms" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_other_foreign_images_under_the_same_name_are_not_told_by_old_figures(
    digits_bundle: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "foreign", tmp_path / "out"
    folder.mkdir()
    arguments = (digits_bundle, "--data", "digits", "--foreign", folder, "--limit", 4, "--output", output)
    for level in (0, 255):
        for number in range(4):
            Image.new("L", (8, 8), level).save(folder / f"{number}.png")
        result = invoke(*arguments)
        if level == 0:
            assert result.exit_code == 0, result.output
    assert isinstance(result.exception, EvaluationError)


def test_the_test_images_are_those_of_the_bundle_s_own_split(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """An image folder without a test set is parted by the seed that it was fitted with."""
    splits = load_splits(digits_checkpoint.config.data)
    unseen = join(splits.calibration, splits.test)
    for index, (pixels, label) in enumerate(zip(unseen.images, unseen.labels, strict=True)):
        (tmp_path / "images" / str(int(label))).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(tmp_path / "images" / str(int(label)) / f"{index}.png")
    data = DataConfig(name="image-folder", directory=str(tmp_path / "images"), split_seed=1)
    fitted = fit_screener(digits_checkpoint, data, false_alarm_rate=0.05, name="folder", device=torch.device("cpu"))
    save_bundle(
        fitted.screener,
        tmp_path / "bundle",
        network=digits_checkpoint.config.network,
        mixture=digits_checkpoint.config.mixture,
        reference_images=fitted.calibration.images[:8],
        split_digests={"test": fitted.splits.test.digest()},
        measured={},
        card="a folder of digits",
        data=DataSplit(name="image-folder", split_seed=1, left_out=()),
    )
    arguments = ("--data", "image-folder", "--data-dir", tmp_path / "images", "--output", tmp_path / "out")
    result = invoke(tmp_path / "bundle", *arguments)
    assert result.exit_code == 0, result.output
    checks = json.loads((tmp_path / "out" / "results.json").read_text())["checks"]
    assert {check["name"]: check["level"] for check in checks}["test images"] == "passed"


def test_classes_that_were_left_out_stay_out_of_the_same_data_alone(digits_bundle: Path) -> None:
    split = DataSplit(name="digits", split_seed=3, left_out=("8", "9"))
    manifest = replace(load_manifest(digits_bundle), data=split)
    same, other = (data_for(manifest, name, None) for name in ("digits", "mnist"))
    assert (same.split_seed, same.left_out) == (3, ("8", "9"))
    assert (other.split_seed, other.left_out) == (0, ())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("--attacks", "fgsn", "--eps", "0.1"), AttackError, "there are fgsm"),
        (("--attacks", "fgsm"), AttackError, "needs a budget"),
        (("--attacks", "fgsm", "--eps", "8"), AttackError, r"\(0, 1\]"),
        (("--attacks", "fgsm", "--eps", "x"), EvaluationError, "'x' is not a number"),
        (("--attacks", "fgsm", "--eps", "1/0"), EvaluationError, "'1/0' is not a number"),
        (("--attacks", "fgsm", "--eps", "nan"), EvaluationError, "'nan' is not a number"),
        (("--attacks", "bim", "--eps", "0.1", "--steps", "1.5"), EvaluationError, "whole numbers"),
        (("--attacks", "fgsm", "--eps", "0.1", "--limit", "0"), EvaluationError, "limit"),
        (("--attacks", "fgsm", "--eps", "0.1", "--device", "tpu"), ConfigurationError, "device"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    digits_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], error: type[LGMGuardError], words: str
) -> None:
    output = tmp_path / "out"
    found = refused(digits_bundle, "--data", "digits", "--output", output, *arguments)
    assert isinstance(found, error)
    with pytest.raises(error, match=words):
        raise found
    assert not output.exists()


@pytest.mark.parametrize(
    "option",
    [
        *("--attacks", "--eps", "--eps-l2", "--steps", "--adaptive"),
        *("--corruptions", "--severities", "--foreign", "--seeds"),
    ],
)
def test_commas_alone_are_no_list(digits_bundle: Path, tmp_path: Path, option: str) -> None:
    """With which less would be run than was asked for, or something else."""
    error = refused(digits_bundle, "--data", "digits", "--output", tmp_path / "out", option, " ,")
    assert str(error) == f"{option}: at least one is needed beside the commas, got ' ,'"


@pytest.mark.parametrize("missing", ["bundle", "--data", "--output"])
def test_what_is_missing_is_named(digits_bundle: Path, tmp_path: Path, missing: str) -> None:
    given = {"bundle": (digits_bundle,), "--data": ("--data", "digits"), "--output": ("--output", tmp_path / "out")}
    arguments = [word for name, words in given.items() if name != missing for word in words]
    error = refused(*arguments, "--attacks", "fgsm", "--eps", "0.1")
    assert f"{missing} is missing" in str(error).replace("a bundle", "bundle").replace(" (or --images)", "")
