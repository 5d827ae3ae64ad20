import re
from pathlib import Path

import pytest
import torchattacks
from torch import Tensor, nn

from detectors import ROBUST_BUNDLE, SHIPPED_BUNDLE, Screener, Verdicts, load_bundle
from detectors.known import DEFAULT_DETECTORS
from detectors.manifest import CARD, load_manifest
from model.config import DataConfig
from model.data import load_splits
from model.image_set import ImageSet, to_unit

NUM_IMAGES = 2_000
LEAST_ACCURACY = {SHIPPED_BUNDLE: 0.995, ROBUST_BUNDLE: 0.985}


@pytest.fixture(scope="module", params=[SHIPPED_BUNDLE, ROBUST_BUNDLE], ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def bundle(path: Path) -> Screener:
    return load_bundle(path)


@pytest.fixture(scope="module")
def card(path: Path) -> str:
    return (path / CARD).read_text(encoding="utf-8")


def images_of(name: str, data_directory: Path) -> ImageSet:
    return load_splits(DataConfig(name=name, directory=str(data_directory))).test


def screen(screener: Screener, images: Tensor) -> Verdicts:
    return screener.screen(to_unit(images[:NUM_IMAGES]))


def test_it_is_small(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.iterdir()) < 2_000_000


def test_it_loads_and_reproduces_its_scores(bundle: Screener) -> None:
    bundle.self_test()
    assert bundle.labels == tuple("0123456789")
    assert bundle.image_format.shape == (1, 28, 28)
    assert bundle.false_alarm_rate == 0.01
    assert tuple(bundle.detectors) == bundle.fusion.names == DEFAULT_DETECTORS


def test_its_measured_accuracy_is_the_promised_one(path: Path) -> None:
    measured = load_manifest(path).measured
    assert measured["num_images"] == 10_000
    assert measured["accuracy"] >= LEAST_ACCURACY[path]


def test_what_is_abnormal_is_flagged(path: Path) -> None:
    abnormal = load_manifest(path).measured["abnormal"]
    assert {"fashion-mnist", "noise", "inverted"} <= set(abnormal)
    assert all(found["low"] >= 0.99 for found in abnormal.values())


def test_its_realised_false_alarms_keep_the_promise(path: Path) -> None:
    """The promised share lies above the lower end of the interval: the excess, if any, is chance."""
    measured = load_manifest(path).measured
    assert measured["false_alarms"]["low"] <= 0.01
    assert set(measured["false_alarms_by_class"]) == set("0123456789")


def test_its_card_tells_the_manifest_s_figures(path: Path, card: str) -> None:
    measured = load_manifest(path).measured
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


def test_its_card_names_the_commands(path: Path, card: str) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    train, fit = commands.splitlines()
    assert train.startswith(f"lgm train model/configs/{path.name}.toml")
    assert fit.startswith(f"lgm fit runs/{path.name} --output detectors/bundles/{path.name} ")


@pytest.mark.data
def test_digits_are_recognised_and_rarely_flagged(bundle: Screener, data_directory: Path) -> None:
    digits = images_of("mnist", data_directory)
    verdicts = screen(bundle, digits.images)
    assert float((verdicts.class_index == digits.labels[:NUM_IMAGES]).double().mean()) >= 0.98
    assert float(verdicts.flagged.double().mean()) < 0.03


@pytest.mark.data
def test_clothes_are_flagged(bundle: Screener, data_directory: Path) -> None:
    clothes = images_of("fashion-mnist", data_directory)
    assert float(screen(bundle, clothes.images).flagged.double().mean()) > 0.99


class LogJoint(nn.Module):
    """What attacks of others want: a module that returns logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        log_joint: Tensor = self.network(images).log_joint
        return log_joint


@pytest.mark.data
@pytest.mark.parametrize("attack", [torchattacks.FGSM, torchattacks.BIM])
def test_attacks_that_do_not_know_the_detectors_are_flagged(
    shipped_screener: Screener, data_directory: Path, attack: type
) -> None:
    digits = images_of("mnist", data_directory)
    images, labels = to_unit(digits.images[:200]), digits.labels[:200]
    made = attack(LogJoint(shipped_screener.network).eval(), eps=0.15)(images, labels).clamp(0, 1)
    verdicts = shipped_screener.screen(made)
    fooled = verdicts.class_index != labels
    assert int(fooled.sum()) > 50
    assert float(verdicts.flagged[fooled].double().mean()) > 0.98
