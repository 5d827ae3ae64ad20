"""lgm verify on digits laid out as LFW lays out faces."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from detectors.comparison.settings import ComparisonError
from detectors.comparison.verify_cli import verify_pairs
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.errors import ImageError
from tests.commands import alone


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(alone(verify_pairs), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def faces(digits_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images lfw/three/three_0001.png and on, and a pairs.txt of ten folds of six pairs."""
    folder = tmp_path_factory.mktemp("lfw")
    test = load_splits(digits_checkpoint.config.data).test
    generator, lines = np.random.default_rng(0), ["10 3"]
    names = ("three", "five", "six")
    for name, label in zip(names, (3, 5, 6), strict=True):
        (folder / name).mkdir()
        for number, image in enumerate(test.images[test.labels == label][:20], 1):
            Image.fromarray(image[0].numpy()).save(folder / name / f"{name}_{number:04}.jpg", quality=95)
    for row in range(60):
        one, other = generator.choice(names, 2, replace=False)
        i, j = generator.choice(np.arange(1, 21), 2, replace=False)
        lines.append(f"{one} {i} {j}" if row % 6 < 3 else f"{one} {i} {other} {j}")
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_pairs_are_verified(digits_run: Path, faces: Path) -> None:
    result = invoke(digits_run, "--pairs", faces / "pairs.txt", "--images", faces)
    assert result.exit_code == 0, result.output
    assert float(result.output.removeprefix("accuracy ").partition("%")[0]) > 90
    assert "60 pairs of " in result.output


def test_an_image_that_is_not_there_is_named(digits_run: Path, faces: Path, tmp_path: Path) -> None:
    error = invoke(digits_run, "--pairs", faces / "pairs.txt", "--images", tmp_path).exception
    assert isinstance(error, ImageError)
    assert "_00" in str(error)


def test_another_pairs_file_is_refused(digits_run: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("nothing\n")
    error = invoke(digits_run, "--pairs", tmp_path / "pairs.txt", "--images", faces).exception
    assert isinstance(error, ComparisonError)
