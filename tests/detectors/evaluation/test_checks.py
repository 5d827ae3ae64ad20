from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors import Screener
from detectors.evaluation import checks
from detectors.evaluation.adaptive import ADAPTIVE_STEPS
from detectors.evaluation.attack_checks import check_attacks
from detectors.evaluation.checks import Check
from detectors.evaluation.rows import Measured
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit

Outcome = Callable[..., Measured]


@pytest.fixture(scope="module")
def digits(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    test = load_splits(digits_checkpoint.config.data).test
    return to_unit(test.images[:64]), test.labels[:64]


@pytest.fixture
def screener(digits_screener: Screener) -> Screener:
    return deepcopy(digits_screener)


class Stepped(nn.Module):
    """Rounds: its gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mul(8).round().div(8)


class Cut(nn.Module):
    """Nothing leads back through it."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


class Noisy(nn.Module):
    """Dropout that no mode switches off."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.dropout(features, 0.2, training=True)


def levels(found: list[Check]) -> dict[str, str]:
    return {check.name: check.level for check in found}


def run(*attacks: Measured) -> dict[str, Check]:
    return {check.name: check for check in check_attacks(attacks)}


def modes(screener: Screener, digits: tuple[Tensor, Tensor]) -> Check:
    return checks.check_modes(screener, checks.look(screener, [digits]))


def gradients(screener: Screener, digits: tuple[Tensor, Tensor]) -> Check:
    return checks.check_gradients(checks.look(screener, [digits]))


def right(count: int, total: int = 200) -> np.ndarray:
    return np.arange(total) < count


def test_a_loaded_bundle_passes(screener: Screener, digits: tuple[Tensor, Tensor]) -> None:
    assert modes(screener, digits).level == "passed"
    assert gradients(screener, digits).level == "passed"
    assert not checks.zero_gradients(screener, *digits).any()


def test_one_module_in_training_mode_is_refused(screener: Screener, digits: tuple[Tensor, Tensor]) -> None:
    screener.network.embedding.train()
    check = modes(screener, digits)
    assert (check.level, "network.embedding" in check.message) == ("refuse", True)


def test_dropout_that_stays_active_is_refused(screener: Screener, digits: tuple[Tensor, Tensor]) -> None:
    screener.network.embedding = nn.Sequential(screener.network.embedding, Noisy().eval()).eval()
    assert modes(screener, digits).level == "refuse"


def test_a_random_detector_on_a_sound_network_is_warned_of(screener: Screener, digits: tuple[Tensor, Tensor]) -> None:
    detector = screener.detectors[screener.fusion.names[0]]
    detector.register_forward_hook(lambda module, given, scores: scores + torch.rand_like(scores))
    assert modes(screener, digits).level == "warn"


@pytest.mark.parametrize("mask", [Stepped(), Cut()])
def test_masked_gradients_are_refused(screener: Screener, digits: tuple[Tensor, Tensor], mask: nn.Module) -> None:
    screener.network.normalise = nn.Sequential(mask, screener.network.normalise).eval()
    assert checks.zero_gradients(screener, *digits).all()
    assert gradients(screener, digits).level == "refuse"


@pytest.mark.parametrize(("count", "level"), [(0, "passed"), (1, "warn"), (6, "warn"), (7, "refuse")])
def test_zero_gradients_are_counted_by_image(
    screener: Screener, digits: tuple[Tensor, Tensor], count: int, level: str
) -> None:
    class Some(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images[:count].detach(), images[count:]])

    screener.network.normalise = nn.Sequential(Some(), screener.network.normalise).eval()
    assert checks.zero_gradients(screener, *digits).tolist() == [True] * count + [False] * (64 - count)
    assert gradients(screener, digits).level == level


def test_batches_are_judged_as_all_their_images_at_once(screener: Screener, digits: tuple[Tensor, Tensor]) -> None:
    """Whatever is wrong in one of them is."""

    class ThirdBatch(nn.Module):
        """Sees no way back from some images, and is noisy there."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.where(chosen(images), images.detach() + 0.2 * torch.rand_like(images), images)

    def chosen(images: Tensor) -> Tensor:
        return (images[:, None] == digits[0][32:40]).flatten(2).all(2).any(1)[:, None, None, None]

    batches = list(zip(*(part.split(16) for part in digits), strict=True))
    assert checks.look(screener, batches).agree
    screener.network.normalise = nn.Sequential(ThirdBatch(), screener.network.normalise).eval()
    whole, parted = checks.look(screener, [digits]), checks.look(screener, batches)
    assert (whole.agree, parted.agree) == (False, False)
    assert whole.differing == parted.differing != ()
    assert whole.blind.tolist() == parted.blind.tolist() == [32 <= index < 40 for index in range(64)]


def test_clean_accuracy_is_held_against_the_bundles_own_allowing_for_chance() -> None:
    def level(count: int) -> str:
        return checks.check_accuracy(right(count), {"accuracy": 0.98, "num_images": 1000}).level

    assert [level(200), level(194), level(170)] == ["passed", "passed", "warn"]
    assert checks.check_accuracy(right(100), {}).level == "not run"


def test_a_bundle_that_measured_no_error_may_make_one() -> None:
    perfect = {"accuracy": 1.0, "num_images": 900}
    hits = np.arange(1000)
    assert checks.check_accuracy(hits > 0, perfect).level == "passed"
    assert checks.check_accuracy(hits > 19, perfect).level == "warn"


def test_other_test_images_and_small_calibration_sets_are_warned_of() -> None:
    assert checks.check_test_split("a", {"test": "a"}).level == "passed"
    assert checks.check_test_split("b", {"test": "a"}).level == "warn"
    assert checks.check_resolution({"cat": 99, "dog": 100}).level == "passed"
    short = checks.check_resolution({"cat": 98, "dog": 20})
    assert (short.level, "'dog': 20" in short.message) == ("warn", True)


@pytest.mark.parametrize(
    ("flagged", "by_class", "expected"),
    [
        (50, 5, {"false alarms": "passed", "false alarms by class": "passed"}),
        (90, 5, {"false alarms": "warn", "false alarms by class": "passed"}),
        (150, 5, {"false alarms": "refuse", "false alarms by class": "passed"}),
        (10, 5, {"false alarms": "warn", "false alarms by class": "passed"}),
        (50, 30, {"false alarms": "passed", "false alarms by class": "warn"}),
    ],
)
def test_realised_false_alarms_against_the_promise(flagged: int, by_class: int, expected: dict[str, str]) -> None:
    figures: dict[str, Any] = {
        "detector": "fused",
        "seed": 0,
        "promise": 0.05,
        "overall": {"num_images": 1000, "num_flagged": flagged},
        "by_class": {"cat": {"num_images": 100, "num_flagged": by_class}, "dog": {"num_images": 0, "num_flagged": 0}},
    }
    other = figures | {"detector": "another", "overall": {"num_images": 1000, "num_flagged": 900}}
    assert levels(list(checks.check_false_alarms([figures, other], {"cat": 5_000, "dog": 5_000}))) == expected


def test_more_steps_that_are_weaker_are_refused(outcome: Outcome) -> None:
    few = outcome(right(20), steps=10)
    assert run(few, outcome(right(10), steps=40))["more steps"].level == "passed"
    assert run(few, outcome(right(22), steps=40))["more steps"].level == "passed"  # within chance
    assert run(few, outcome(right(80), steps=40))["more steps"].level == "refuse"
    assert run(few, outcome(right(80), steps=40, eps=0.05))["more steps"].level == "not run"
    assert run(few, outcome(right(80), steps=40, seed=1))["more steps"].level == "not run"


def test_an_iterated_attack_weaker_than_one_step_is_refused(outcome: Outcome) -> None:
    single = outcome(right(40), name="fgsm")
    assert run(single, outcome(right(5), name="bim", steps=10))["more steps"].level == "passed"
    assert run(single, outcome(right(90), name="bim", steps=10))["more steps"].level == "refuse"


def test_a_white_box_attack_weaker_than_square_is_refused(outcome: Outcome) -> None:
    square = outcome(right(40), name="square", steps=1000)
    assert run(square, outcome(right(20), name="pgd", steps=40))["white box"].level == "passed"
    assert run(square, outcome(right(90), name="pgd", steps=40))["white box"].level == "refuse"
    assert run(square, outcome(right(90), name="fgsm"))["white box"].level == "not run"  # one step is weak by design


def test_an_attack_that_costs_nothing_at_its_largest_eps_is_warned_of(outcome: Outcome) -> None:
    small, large = outcome(right(200), eps=0.01), outcome(right(100), eps=0.3)
    assert run(small, large)["attacks cost accuracy"].level == "passed"
    assert run(small)["attacks cost accuracy"].level == "warn"


def test_an_attack_that_fails_with_the_whole_range_as_budget_is_warned_of(outcome: Outcome) -> None:
    assert run(outcome(right(0), steps=40, eps=0.2))["saturation"].level == "passed"
    assert run(outcome(right(60), steps=40, eps=0.2))["saturation"].level == "not run"
    assert run(outcome(right(60), steps=40, eps=1.0))["saturation"].level == "warn"


def test_an_attack_that_knows_the_detector_must_not_get_through_less_often(outcome: Outcome) -> None:
    unaware = outcome(right(50), p_value=0.5, steps=40)
    aware = {"name": "joint", "knowledge": "full", "steps": 40}
    assert run(unaware, outcome(right(40), p_value=0.5, **aware))["knowledge helps"].level == "passed"
    assert run(unaware, outcome(right(40), p_value=0.01, **aware))["knowledge helps"].level == "warn"
    assert run(unaware)["knowledge helps"].level == "not run"


def test_few_steps_against_a_detector_are_warned_of(outcome: Outcome) -> None:
    aware = {"name": "joint", "knowledge": "full"}
    hasty, patient = outcome(right(9), steps=40, **aware), outcome(right(9), steps=ADAPTIVE_STEPS, **aware)
    assert run(hasty)["enough steps"].level == "warn"
    assert "joint eps 0.1, 40 steps" in run(hasty)["enough steps"].message
    assert run(hasty, patient)["enough steps"].level == "passed"  # the verdict is the best of them
    assert run(hasty, outcome(right(9), steps=ADAPTIVE_STEPS, eps=0.3, **aware))["enough steps"].level == "warn"
    assert run(outcome(right(9), steps=40))["enough steps"].level == "not run"


def test_attacks_that_know_the_detector_are_compared_by_what_they_seek(outcome: Outcome) -> None:
    """All are wrong under either, so accuracy says nothing; the one gets through and the other does not."""
    aware = {"name": "joint", "knowledge": "full"}
    through, caught = (
        outcome(right(0), p_value=0.5, steps=10, **aware),
        outcome(right(0), p_value=0.01, steps=40, **aware),
    )
    assert run(through, caught)["more steps"].level == "refuse"
    assert "right or flagged at 5 % 100.0%" in run(through, caught)["more steps"].message
    wide = outcome(right(0), p_value=0.01, steps=10, eps=0.4, **aware)
    assert run(through, wide)["larger eps"].level == "warn"
    assert run(through, outcome(right(0), p_value=0.5, steps=10, eps=0.4, **aware))["larger eps"].level == "passed"
    blind = outcome(right(0), p_value=0.5, name="random-search", knowledge="full", steps=40)
    assert run(caught, blind)["detector's gradients help"].level == "warn"
    assert run(caught, through, blind)["detector's gradients help"].level == "passed"
    assert run(caught)["detector's gradients help"].level == "not run"


def test_a_larger_budget_that_is_weaker_is_warned_of(outcome: Outcome) -> None:
    small, large = outcome(right(20), steps=40, eps=0.1), outcome(right(80), steps=40, eps=0.2)
    assert run(small, large)["larger eps"].level == "warn"
    assert run(small, outcome(right(10), steps=40, eps=0.2))["larger eps"].level == "passed"
    assert run(small, outcome(right(80), steps=10, eps=0.2))["larger eps"].level == "not run"
    assert (
        run(outcome(right(20), name="fgsm"), outcome(right(80), name="fgsm", eps=0.3))["larger eps"].level
        == "not run"
    )


def test_nothing_attacked_leaves_nothing_to_check() -> None:
    assert run() == {}
