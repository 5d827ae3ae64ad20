import re
from pathlib import Path

import pytest
import torch

from detectors import SHIPPED_BUNDLE, Screener, Verdicts
from detectors.bundle import CARD, load_manifest
from model.config import DataConfig
from model.data import load_splits, to_unit

NUM_IMAGES = 2_000


def screen(screener: Screener, data_directory: Path, name: str) -> tuple[Verdicts, torch.Tensor]:
    test = load_splits(DataConfig(name=name, directory=str(data_directory))).test
    return screener.screen(to_unit(test.images[:NUM_IMAGES])), test.labels[:NUM_IMAGES]


@pytest.fixture(scope="module")
def card() -> str:
    return (SHIPPED_BUNDLE / CARD).read_text(encoding="utf-8")


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_BUNDLE.iterdir()) < 2_000_000


def test_it_loads_and_reproduces_its_scores(shipped_screener: Screener) -> None:
    shipped_screener.self_test()
    assert shipped_screener.labels == tuple("0123456789")
    assert shipped_screener.image_format.shape == (1, 28, 28)
    assert shipped_screener.false_alarm_rate == 0.01


def test_its_measured_accuracy_is_the_promised_one() -> None:
    measured = load_manifest(SHIPPED_BUNDLE).measured
    assert measured["num_images"] == 10_000
    assert measured["accuracy"] >= 0.995


def test_it_was_measured_on_what_is_abnormal() -> None:
    assert {"fashion-mnist", "noise", "inverted"} <= set(load_manifest(SHIPPED_BUNDLE).measured["abnormal"])


def test_its_realised_false_alarms_keep_the_promise() -> None:
    """The promised share lies above the lower end of the interval: the excess, if any, is chance."""
    measured = load_manifest(SHIPPED_BUNDLE).measured
    assert measured["false_alarms"]["low"] <= 0.01
    assert set(measured["false_alarms_by_class"]) == set("0123456789")


def test_its_card_tells_the_manifest_s_figures(card: str) -> None:
    measured = load_manifest(SHIPPED_BUNDLE).measured
    assert f"Accuracy {measured['accuracy']:.2%} on 10,000 images" in card
    expected = {
        "all": measured["false_alarms"],
        **{f"predicted {name}": found for name, found in measured["false_alarms_by_class"].items()},
        **measured["abnormal"],
    }
    for name, found in expected.items():
        share = found["num_flagged"] / found["num_images"]
        row = (
            f"| {name} | {found['num_images']:,} | {found['num_flagged']:,} | {share:.2%} | "
            f"{found['low']:.2%} to {found['high']:.2%} |"
        )
        assert row in card


def test_its_card_names_the_commands(card: str) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    train, fit = commands.splitlines()
    assert train.startswith("lgm train ")
    assert "mnist.toml" in train
    assert fit.startswith("lgm fit ")


@pytest.mark.data
def test_digits_are_recognised_and_rarely_flagged(shipped_screener: Screener, data_directory: Path) -> None:
    verdicts, labels = screen(shipped_screener, data_directory, "mnist")
    assert float((verdicts.class_index == labels).double().mean()) >= 0.99
    assert float(verdicts.flagged.double().mean()) < 0.03


@pytest.mark.data
def test_clothes_are_flagged_more_often_than_digits(shipped_screener: Screener, data_directory: Path) -> None:
    clean, _ = screen(shipped_screener, data_directory, "mnist")
    foreign, _ = screen(shipped_screener, data_directory, "fashion-mnist")
    assert float(foreign.flagged.double().mean()) > 10 * float(clean.flagged.double().mean())
