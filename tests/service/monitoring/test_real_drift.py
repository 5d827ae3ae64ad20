"""The shipped bundle under watch on real images: MNIST's test set as it is, dimmed, and with one class dimmed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detectors import SHIPPED_BUNDLE, Screener
from detectors.manifest import load_manifest
from model.config import parse_data_config
from model.data import load_splits
from model.image_set import to_unit
from service.judgements import Judgements
from service.monitoring.baseline import load_baseline
from service.monitoring.model_watch import Findings, ModelWatch
from tests.service.monitoring.simulated import Clock

pytestmark = pytest.mark.data
NUM_IMAGES, IMAGES_A_MINUTE = 3000, 100


@pytest.fixture(scope="module")
def digits(data_directory: Path) -> Tensor:
    """Test images in [0, 1], drawn at random, since the set is sorted by who wrote them."""
    config = parse_data_config({"name": "mnist", "directory": str(data_directory)})
    images = load_splits(config).test.images
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:NUM_IMAGES]
    return to_unit(images[drawn])


def judge(screener: Screener, images: Tensor) -> Judgements:
    said = screener.screen(images)
    evidence = said.evidence.values()
    return Judgements(
        said.class_index.numpy(),
        said.probabilities.numpy(),
        said.log_likelihood.numpy(),
        said.p_value.numpy(),
        said.flagged.numpy(),
        tuple(said.evidence),
        torch.stack([of.score for of in evidence], 1).numpy(),
        torch.stack([of.p_value for of in evidence], 1).numpy(),
    )


def watched(screener: Screener, images: Tensor) -> tuple[list[bool], Findings]:
    """Whether an alarm stands after each minute, and what is told at last."""
    clock, manifest = Clock(), load_manifest(SHIPPED_BUNDLE)
    watch = ModelWatch(manifest, load_baseline(SHIPPED_BUNDLE, manifest), clock=clock)
    alarms = []
    for minute in images.split(IMAGES_A_MINUTE):
        watch.batch_judged(judge(screener, minute))
        clock.seconds += 60
        found = watch.tell(watch.gather(), datetime.now(UTC))
        alarms.append(bool(found.drift.alarms))
    return alarms, found


def test_clean_digits_raise_no_alarm_in_any_minute(shipped_screener, digits):
    alarms, found = watched(shipped_screener, digits)
    assert not any(alarms)
    assert found.flagged.hour.low <= shipped_screener.false_alarm_rate


def test_dimmed_digits_do_within_minutes(shipped_screener, digits):
    clean, dimmed = digits[:500], 0.5 * digits[500:1000]
    alarms, found = watched(shipped_screener, torch.cat([clean, dimmed]))
    assert alarms[:5] == [False] * 5
    assert alarms[5:] == [True] * 5
    assert any("likelihood" in alarm.words for alarm in found.drift.alarms)


def test_a_class_that_drifts_is_named(shipped_screener, digits):
    digits = digits[:1500]
    sevens = (shipped_screener.screen(digits).class_index == 7).view(-1, 1, 1, 1)
    _, found = watched(shipped_screener, torch.where(sevens, 0.7 * digits, digits))
    assert {alarm.label for alarm in found.drift.alarms} - {None} == {"7"}
    assert all("class 7" in alarm.words for alarm in found.drift.alarms if alarm.label)
