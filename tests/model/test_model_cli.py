from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model.checkpoint import load_checkpoint
from model.cli import app
from model.errors import CheckpointError, ConfigurationError, LGMGuardError
from model.losses.known import LOSSES


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> LGMGuardError:
    error = invoke(*arguments).exception
    assert isinstance(error, LGMGuardError), error
    return error


def test_train_writes_a_checkpoint_and_logs_and_tells_the_accuracy(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = invoke(toml, "--output", output, "--set", "training.epochs=1", "--set", "loss.alpha=0.3")
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(output)
    assert (checkpoint.config.training.epochs, checkpoint.config.loss.alpha) == (1, 0.3)
    assert f"test accuracy {checkpoint.test_accuracy:.4f}; {output / 'checkpoint.pt'}" in result.output
    assert {path.name for path in output.iterdir()} == {"checkpoint.pt", "metrics.csv", "tensorboard"}
    assert checkpoint.command.split()[0] == "lgm"


def test_the_folder_is_named_after_the_run(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(toml, "--set", "training.epochs=1").exit_code == 0
    assert (tmp_path / "runs" / "tiny" / "checkpoint.pt").is_file()


def test_the_same_command_again_only_tells_the_accuracy(toml: Path, tmp_path: Path) -> None:
    first, again = (invoke(toml, "--output", tmp_path / "run", "--set", "training.epochs=1") for _ in range(2))
    assert again.exit_code == 0
    assert first.output.splitlines()[-1] == again.output.splitlines()[-1]
    assert "epoch 1:" not in again.output


def test_a_wrong_configuration_leaves_nothing_behind(toml: Path, tmp_path: Path) -> None:
    error = refused(toml, "--output", tmp_path / "run", "--set", "loss.alpha=-1")
    assert isinstance(error, ConfigurationError)
    assert "loss.alpha" in str(error)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.toml cannot be read" in str(refused(tmp_path / "none.toml"))


def test_another_run_s_folder_is_refused(toml: Path, digits_run: Path) -> None:
    error = refused(toml, "--output", digits_run)
    assert isinstance(error, CheckpointError)
    assert "another configuration" in str(error)


def test_another_loss_has_a_run_of_its_own(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(toml, "--loss", "cosface", "--set", "loss.margin=0.1", "--set", "training.epochs=1")
    assert result.exit_code == 0, result.output
    assert "by Gaussians fitted after training; runs/tiny-cosface/checkpoint.pt" in result.output
    loss = load_checkpoint(tmp_path / "runs" / "tiny-cosface").config.loss
    assert (loss.name, loss.margin) == ("cosface", 0.1)


def test_an_unknown_loss_is_refused_with_those_that_exist(toml: Path) -> None:
    assert "loss.name 'hinge' does not exist; there are: softmax," in str(refused(toml, "--loss", "hinge"))


def test_more_processes_than_gpus_are_refused(toml: Path, tmp_path: Path) -> None:
    error = refused(toml, "--output", tmp_path / "run", "--devices", "99", "--set", "training.device=cuda")
    assert "--devices 99 is more than the" in str(error)
    assert not (tmp_path / "run").exists()


def test_losses_are_listed_with_their_options() -> None:
    told = invoke("--list-losses").output
    assert all(name in told for name in LOSSES)
    assert "loss.margin=0.35, loss.scale" in told


def test_help_shows_the_options() -> None:
    told = invoke("--help").output
    assert all(name in told for name in ("config", "--output", "--set", "runs/NAME", "table.key=value"))
    assert "--command" not in told
