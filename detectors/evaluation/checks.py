"""Self-checks: does this evaluation measure the bundle, or a fault of its own?

`refuse`: do not rely on the figures. `warn`: read them with this in mind. `passed`; `not run`: nothing to compare.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from torch import Tensor
from torch.nn import functional

from detectors.evaluation import metrics
from detectors.evaluation.parts import FUSED
from detectors.evaluation.rows import LEVEL
from detectors.screener import Screener

Level = Literal["passed", "warn", "refuse", "not run"]
SIGNIFICANCE = 0.001  # of the paired tests and of clean accuracy: one false alarm in a thousand checks
ZERO_GRADIENTS_WARN, ZERO_GRADIENTS_REFUSE = 0.01, 0.10
REPEAT_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One self-check and how it went, in words."""

    name: str
    level: Level
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What n clean images show of a network.

    agree: two passes give the same likelihoods; differing: detectors whose scores differ between them.
    blind (n,): see `zero_gradients`.
    """

    agree: bool
    differing: tuple[str, ...]
    blind: Bool[Tensor, " n"]


def look(screener: Screener, batches: Iterable[tuple[Tensor, Tensor]]) -> Look:
    """Two passes over each batch of images (m, c, h, w) and labels (m,), and one back; one is held at a time."""
    agree, differing, blind = True, set[str](), []
    for images, labels in batches:
        first, second = screener.screen(images), screener.screen(images)
        agree &= _is_repeated(first.log_likelihood, second.log_likelihood, REPEAT_TOLERANCE)
        differing |= {
            name
            for name, said in first.evidence.items()
            if not _is_repeated(said.score, second.evidence[name].score, SCORE_TOLERANCE)
        }
        blind.append(zero_gradients(screener, images, labels))
    named = tuple(name for name in screener.detectors if name in differing)
    return Look(agree=agree, differing=named, blind=torch.cat(blind))


def _is_repeated(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return torch.allclose(first, second, rtol=tolerance, atol=1e-3, equal_nan=True)


def check_modes(screener: Screener, found: Look) -> Check:
    """A network in training mode, or one whose answers differ between two passes, cannot be attacked honestly."""
    name = "evaluation mode"
    training = [path or "screener" for path, module in screener.named_modules() if module.training]
    if training:
        return Check(
            name=name,
            level="refuse",
            message=f"{len(training)} modules are in training mode, {training[0]} among them: call screener.eval()",
        )
    if not found.agree:
        return Check(
            name=name, level="refuse", message="the network's outputs differ between two passes: is dropout active?"
        )
    if found.differing:
        return Check(
            name=name,
            level="warn",
            message=f"scores of {', '.join(found.differing)} differ between two passes: attack their expectation",
        )
    return Check(name=name, level="passed", message="no module in training mode; two passes agree")


def zero_gradients(
    screener: Screener, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Whose input gradient of the cross entropy is zero in every pixel, or not finite: FGSM and its like are blind.

    The log joint is taken relative to its largest, as the attacks take it.
    """
    given = images.detach().to(screener.device, torch.float32).requires_grad_()
    with torch.enable_grad():
        log_joint = screener.network(given).log_joint
        relative = log_joint - log_joint.amax(1, keepdim=True)
        loss = functional.cross_entropy(relative, labels.to(screener.device), reduction="sum")
        if not loss.requires_grad:  # nothing leads back to the images
            return torch.ones(len(images), dtype=torch.bool)
        (gradient,) = torch.autograd.grad(loss, given)
    rows = gradient.flatten(1)
    return ((rows == 0).all(1) | ~rows.isfinite().all(1)).cpu()


def check_gradients(found: Look) -> Check:
    """Masked gradients: see `zero_gradients`."""
    blind = float(found.blind.double().mean())
    level: Level = "passed"
    if blind > ZERO_GRADIENTS_WARN:
        level = "refuse" if blind > ZERO_GRADIENTS_REFUSE else "warn"
    told = f"the input gradient is zero in every pixel for {blind:.1%} of {len(found.blind)} clean images"
    return Check(name="zero gradients", level=level, message=told)


def check_accuracy(right: np.ndarray, measured: Mapping[str, Any]) -> Check:
    """Clean accuracy below the one the bundle measured itself, by more than chance: Fisher's exact test."""
    name = "clean accuracy"
    promised, of = measured.get("accuracy"), measured.get("num_images")
    if not isinstance(promised, float) or not isinstance(of, int):
        return Check(name=name, level="not run", message="the bundle names no accuracy of its own")
    hits, count = int(right.sum()), len(right)
    told = f"{hits / count:.2%} of {count} images; the bundle measured {promised:.2%}"
    if float(hypergeom.cdf(hits, of + count, round(promised * of) + hits, count)) < SIGNIFICANCE:
        return Check(name=name, level="warn", message=f"{told}: below it by more than chance; other data?")
    return Check(name=name, level="passed", message=told)


def check_test_split(digest: str, split_digests: Mapping[str, str]) -> Check:
    """Images that the bundle was calibrated or trained on make its false alarms look better than they are."""
    name = "test images"
    if digest == split_digests.get("test"):
        return Check(name=name, level="passed", message="the bundle's own test set, which nothing was fitted on")
    return Check(
        name=name,
        level="warn",
        message="not the bundle's own test set: make sure that it was neither trained nor calibrated on them",
    )


def check_resolution(calibration_sizes: Mapping[str, int]) -> Check:
    """The smallest p-value is 1 / (n + 1): a class calibrated on fewer than 99 images can never be flagged at 1 %."""
    name = "calibration size"
    short = {label: count for label, count in calibration_sizes.items() if count < 99}
    if not short:
        return Check(name=name, level="passed", message="every class can be flagged at 5 % and at 1 %")
    label, count = min(short.items(), key=lambda pair: pair[1])
    return Check(
        name=name,
        level="warn",
        message=f"{len(short)} classes are calibrated on fewer than 99 images (class {label!r}: {count}) "
        "and are never flagged at 1 %: detection at 1 % is understated",
    )


def check_false_alarms(figures: Sequence[Mapping[str, Any]], calibration_sizes: Mapping[str, int]) -> Iterator[Check]:
    """Realised false alarms against what each promise gives in 99 of 100 cases, overall and by class.

    Both the calibration images and these are samples. A warning; refused only where the exact interval of the
    realised share lies above twice the promise.
    """
    for found in figures:
        if found["detector"] == FUSED:
            yield _overall(found, sum(calibration_sizes.values()))
            yield _by_class(found, calibration_sizes)


def _overall(found: Mapping[str, Any], num_calibration: int) -> Check:
    alarms, promise = found["overall"], found["promise"]
    where = _place(alarms, promise, num_calibration)
    least, _ = metrics.share_interval(alarms["num_flagged"], alarms["num_images"], level=LEVEL)
    level: Level = "refuse" if least > 2 * promise else "warn" if where else "passed"
    reason = ("", ": more than the promise allows", ": fewer than promised, so detection is understated")[where]
    told = f"{alarms['num_flagged']} of {alarms['num_images']} clean images flagged, {promise:.3g} promised"
    return Check(name="false alarms", level=level, message=f"seed {found['seed']}: {told}{reason}")


def _by_class(found: Mapping[str, Any], calibration_sizes: Mapping[str, int]) -> Check:
    promise = found["promise"]
    out = [name for name, alarms in found["by_class"].items() if _place(alarms, promise, calibration_sizes[name])]
    told = f"class {', '.join(out)} outside what samples of these sizes give in 99 of 100 cases"
    return Check(
        name="false alarms by class",
        level="warn" if out else "passed",
        message=f"seed {found['seed']}, {promise:.3g} promised: {told if out else 'every class inside its interval'}",
    )


def _place(alarms: Mapping[str, Any], promise: float, num_calibration: int) -> int:
    """1 above the interval, -1 below it, 0 inside."""
    low, high = metrics.promised_counts(promise, alarms["num_images"], num_calibration=num_calibration, level=LEVEL)
    return int(alarms["num_flagged"] > high) - int(alarms["num_flagged"] < low)
