from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detectors import BundleError, ImageError, Screener
from detectors.bundle import load_bundle
from detectors.screener import check_images
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit


@pytest.fixture(scope="module")
def images(digits_checkpoint: Checkpoint) -> Tensor:
    return to_unit(load_splits(digits_checkpoint.config.data).test.images)


def test_a_verdict_has_its_fields_shapes_and_types(digits_screener: Screener, images: Tensor) -> None:
    verdicts = digits_screener.screen(images[:5])
    assert (verdicts.class_index.shape, verdicts.class_index.dtype) == ((5,), torch.int64)
    assert (verdicts.probabilities.shape, verdicts.probabilities.dtype) == ((5, 10), torch.float32)
    assert (verdicts.log_likelihood.shape, verdicts.log_likelihood.dtype) == ((5,), torch.float32)
    assert (verdicts.p_value.shape, verdicts.p_value.dtype) == ((5,), torch.float32)
    assert (verdicts.flagged.shape, verdicts.flagged.dtype) == ((5,), torch.bool)
    assert set(verdicts.evidence) == set(digits_screener.detectors)
    for said in verdicts.evidence.values():
        assert said.score.shape == said.p_value.shape == (5,)


def test_the_parts_of_a_verdict_agree(digits_screener: Screener, images: Tensor) -> None:
    garbage = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    everything = torch.cat([images, garbage])
    verdicts = digits_screener.screen(everything)
    log_joint = digits_screener.network(everything).log_joint
    assert torch.allclose(verdicts.log_likelihood, torch.logsumexp(log_joint, 1), rtol=1e-5)
    assert torch.allclose(verdicts.probabilities, torch.softmax(log_joint, 1), atol=1e-5)
    assert torch.allclose(verdicts.probabilities.sum(1), torch.ones(len(everything)), atol=1e-5)
    assert torch.equal(verdicts.class_index, verdicts.probabilities.argmax(1))
    assert torch.equal(verdicts.flagged, verdicts.p_value <= digits_screener.false_alarm_rate)
    assert 0 < int(verdicts.flagged.sum()) < len(everything)
    fused = digits_screener.p_value(verdicts.suspicion, verdicts.class_index)
    assert torch.equal(verdicts.p_value, fused)


def test_clean_images_are_flagged_at_about_the_promised_rate(digits_screener: Screener, images: Tensor) -> None:
    """449 test images at 5 %: ten classes of some fifty calibration images each, so the interval is wide."""
    assert float(digits_screener.screen(images).flagged.double().mean()) < 0.1


def test_noise_is_flagged_more_often_than_clean_images(digits_screener: Screener, images: Tensor) -> None:
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    clean_share, noise_share = (
        float(digits_screener.screen(judged).flagged.double().mean()) for judged in (images, noise)
    )
    assert noise_share > clean_share


def test_batched_and_alone_are_the_same(digits_screener: Screener, images: Tensor) -> None:
    together = digits_screener.screen(images[:64])
    alone = [digits_screener.screen(image.unsqueeze(0)) for image in images[:64]]
    likelihoods = torch.cat([verdicts.log_likelihood for verdicts in alone])
    assert torch.allclose(together.log_likelihood, likelihoods, rtol=1e-4)
    assert torch.equal(together.class_index, torch.cat([verdicts.class_index for verdicts in alone]))


def test_suspicion_is_the_fused_score_and_differentiable(digits_screener: Screener, images: Tensor) -> None:
    asked = images[:6].clone().requires_grad_()
    suspicion = digits_screener.suspicion(asked)
    expected = digits_screener.screen(images[:6]).suspicion
    assert torch.allclose(suspicion, expected, rtol=1e-5)
    suspicion.sum().backward()
    assert asked.grad is not None
    assert bool(asked.grad.isfinite().all())
    assert bool((asked.grad.flatten(1).abs().sum(1) > 0).all())


def test_following_the_gradient_raises_the_suspicion(digits_screener: Screener, images: Tensor) -> None:
    asked = images[:20].clone().requires_grad_()
    before = digits_screener.suspicion(asked)
    before.sum().backward()
    assert asked.grad is not None
    after = digits_screener.suspicion((images[:20] + 0.01 * asked.grad.sign()).clamp(0, 1))
    assert bool((after > before).double().mean() > 0.9)


def test_the_screener_is_in_evaluation_mode_and_frozen(digits_screener: Screener) -> None:
    assert not any(module.training for module in digits_screener.modules())
    assert not any(parameter.requires_grad for parameter in digits_screener.parameters())


def test_it_stays_so_in_a_module_that_is_trained(digits_screener: Screener, images: Tensor) -> None:
    around = torch.nn.ModuleList([digits_screener])
    before, state = digits_screener.screen(images).p_value, deepcopy(digits_screener.state_dict())
    around.train()
    assert not any(module.training for module in digits_screener.modules())
    torch.testing.assert_close(digits_screener.screen(images).p_value, before, rtol=0, atol=0)
    torch.testing.assert_close(digits_screener.state_dict(), state, rtol=0, atol=0)


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_tensor_is_refused(digits_screener: Screener) -> None:
    with pytest.raises(ImageError, match=r"images must be a torch\.Tensor, got list"):
        check_images([[0.5]], digits_screener.image_format.shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_floats_are_taken(digits_screener: Screener, images: Tensor, dtype: torch.dtype) -> None:
    verdicts = digits_screener.screen(images[:8].to(dtype))
    expected = digits_screener.screen(images[:8].to(dtype).float())
    assert torch.equal(verdicts.log_likelihood, expected.log_likelihood)


def test_the_limits_themselves_are_inside(digits_screener: Screener) -> None:
    verdicts = digits_screener.screen(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]))
    assert bool(verdicts.log_likelihood.isfinite().all())


def spoiled(value: float) -> Tensor:
    images = torch.full((5, 1, 8, 8), 0.5)
    images[3, 0, 2, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 1, 9, 8), r"shape \(n >= 1, 1, 8, 8\), got \(2, 1, 9, 8\)"),
        (torch.zeros(2, 3, 8, 8), r"shape \(n >= 1, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"got \(1, 8, 8\)"),
        (torch.zeros(1, 1, 1, 8, 8), r"got \(1, 1, 1, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), r"n >= 1.*got \(0, 1, 8, 8\)"),
        (torch.tensor(0.5), r"got \(\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"floats in \[0, 1\], got torch.uint8; divide bytes by 255"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), r"got torch.int64"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.complex64), r"got torch.complex64"),
        (spoiled(float("nan")), r"images\[3\] .*\[0, 1\]"),
        (spoiled(float("inf")), r"images\[3\] .*\[0, 1\]"),
        (spoiled(float("-inf")), r"images\[3\] .*\[0, 1\]"),
        (spoiled(-0.1), r"images\[3\] .*\[0, 1\]"),
        (spoiled(1.1), r"images\[3\] .*\[0, 1\]"),
        (spoiled(255.0), r"images\[3\] .*\[0, 1\]"),
    ],
)
def test_images_that_cannot_be_judged_are_refused(digits_screener: Screener, images: Tensor, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        digits_screener.screen(images)


def test_the_self_test_passes_on_what_was_saved(digits_screener: Screener) -> None:
    digits_screener.self_test()


@pytest.mark.parametrize("name", ["network.embedding.weight", "network.mixture.means"])
def test_the_self_test_fails_when_weights_differ(digits_bundle: Path, name: str) -> None:
    screener = load_bundle(digits_bundle)
    with torch.no_grad():
        screener.get_parameter(name).mul_(1.01)
    with pytest.raises(BundleError, match=r"does not reproduce its reference scores on cpu: .*differ by up to"):
        screener.self_test()


def test_the_self_test_fails_when_the_classes_differ(digits_bundle: Path) -> None:
    screener = load_bundle(digits_bundle)
    assert screener.reference is not None
    screener.reference = replace(screener.reference, class_index=(screener.reference.class_index + 1) % 10)
    with pytest.raises(BundleError, match="does not reproduce"):
        screener.self_test()


def test_a_screener_without_reference_scores_says_so(digits_bundle: Path) -> None:
    screener = load_bundle(digits_bundle)
    screener.reference = None
    with pytest.raises(BundleError, match="has no reference scores"):
        screener.self_test()
