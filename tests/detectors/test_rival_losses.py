"""A network trained with a loss that has no density becomes a bundle like any other, and its card says so."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from detectors import load_bundle
from detectors.manifest import CARD
from model.checkpoint import load_checkpoint
from model.config import load_config
from model.data import load_splits
from model.image_set import to_unit
from model.train import train
from model.training_log import Silent
from service.cli import app

CONFIG = Path(__file__).parents[2] / "model" / "configs" / "digits.toml"


@pytest.mark.parametrize("loss", ["softmax", "arcface", "triplet"])
def test_it_becomes_a_bundle(loss: str, tmp_path: Path) -> None:
    train(load_config(CONFIG, ["training.epochs=2"], loss=loss), tmp_path / "run", Silent())
    arguments = ["fit", str(tmp_path / "run"), "--output", str(tmp_path / "bundle"), "--false-alarm-rate", "0.1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    screener, checkpoint = load_bundle(tmp_path / "bundle"), load_checkpoint(tmp_path / "run")
    screener.self_test()
    test = load_splits(checkpoint.config.data).test
    right = screener.screen(to_unit(test.images)).class_index == test.labels
    assert right.double().mean() == pytest.approx(checkpoint.test_accuracy)
    card = (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")
    assert f"trained with the loss {loss} (" in card
    assert "class Gaussians were fitted after training" in card
    assert "diagonal variances. They tell the class" in card
