"""However a bundle is made fast, and whatever the batch's size, its scores stay what they are."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectors import Screener, load_bundle
from detectors.known import KNOWN_DETECTORS
from model.backbones import BACKBONES, build_backbone
from model.errors import BundleError
from model.image_set import to_unit
from service.acceleration import accelerate, check_low_precision, fold_batch_norms
from service.devices import powers_of_two, resolve_devices
from service.errors import InferenceError, SettingsError
from service.graph import Verdict, graph_of
from service.judgements import Judgements
from service.slab import Layout, Slab, anonymous_file
from service.worker import Judge

SIZES = (1, 2, 3, 4, 5, 7, 8)
LIKELIHOOD_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-2


def judge_of(screener: Screener, *, pad: bool = False, trace: bool = True) -> tuple[Judge, Slab]:
    layout = Layout(
        max_batch_size=8,
        image_shape=screener.image_format.shape,
        num_classes=len(screener.labels),
        detectors=tuple(screener.detectors),
    )
    slab = Slab(anonymous_file(layout.num_bytes), layout)
    return Judge(screener, slab, pad=pad, trace=trace), slab


def judged(judge: Judge, slab: Slab, images: torch.Tensor) -> Judgements:
    slab.images[: len(images)] = images.numpy()
    judge(len(images))
    return slab.read(len(images))


@pytest.fixture(scope="module")
def images(digits_images: torch.Tensor) -> torch.Tensor:
    """Clean ones, and noise, which is flagged."""
    noise = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([to_unit(digits_images[:4]), noise])


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("pad", [False, True], ids=["exact", "padded"])
@pytest.mark.parametrize("size", SIZES)
def test_scores_are_the_librarys_at_every_batch_size(digits_bundle, digits_screener, images, size, pad, trace):
    screener = load_bundle(digits_bundle)
    accelerate(screener, precision="float32", compiler="none")
    judge, slab = judge_of(screener, pad=pad, trace=trace)
    for rows in (slice(0, size), slice(8 - size, 8)):
        found, expected = judged(judge, slab, images[rows]), digits_screener.screen(images[rows])
        assert found.class_index.tolist() == expected.class_index.tolist()
        assert found.flagged.tolist() == expected.flagged.tolist()
        np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=LIKELIHOOD_TOLERANCE)
        np.testing.assert_allclose(found.p_value, expected.p_value, atol=0.02)  # a step or two of the calibration's
        for column, said in enumerate(expected.evidence.values()):
            np.testing.assert_allclose(found.evidence_scores[:, column], said.score, rtol=1e-3, atol=1e-3)


def test_bfloat16_keeps_classes_and_likelihoods_within_its_tolerance(digits_bundle, digits_screener, images):
    screener = load_bundle(digits_bundle)
    accelerate(screener, precision="bfloat16", compiler="none")
    check_low_precision(screener)
    clean = images[:4]
    found, expected = screener.screen(clean), digits_screener.screen(clean)
    assert found.log_likelihood.dtype == torch.float32
    assert not torch.equal(found.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=BFLOAT16_TOLERANCE, atol=0.01)
    assert torch.equal(found.class_index, expected.class_index)


def test_a_network_that_low_precision_changes_is_refused(digits_bundle: Path):
    screener = load_bundle(digits_bundle)
    screener.network.mixture.means.add_(0.5)
    with pytest.raises(BundleError, match="use precision float32"):
        check_low_precision(screener)


def norms_after_convolutions(network: nn.Module) -> list[nn.Module]:
    """Those that can be folded; early32 has some after pooling, which cannot."""
    sequences = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    pairs = [pair for sequence in sequences for pair in pairwise(sequence)]
    return [layer for before, layer in pairs if isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_batch_norms_change_nothing(name: str):
    torch.manual_seed(0)
    network = build_backbone(name, num_channels=1, width=4)
    images = torch.rand(16, 1, 32, 32)
    network(images)  # moves the running statistics away from zero and one
    network.eval().requires_grad_(False)
    expected, expected_taps = network.tapped(images)
    assert norms_after_convolutions(network)
    fold_batch_norms(network)
    found, taps = network.tapped(images)
    assert not norms_after_convolutions(network)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for tap, expected_tap in zip(taps, expected_taps, strict=True):
        torch.testing.assert_close(tap, expected_tap, rtol=1e-4, atol=1e-5)


def test_the_default_detectors_run_as_a_graph(digits_bundle):
    screener = load_bundle(digits_bundle)
    assert set(screener.detectors) < set(KNOWN_DETECTORS)
    assert isinstance(graph_of(screener, (1, 2, 8)), torch.jit.ScriptModule)


def test_what_a_graph_would_get_wrong_runs_as_it_is(digits_bundle, monkeypatch, caplog):
    screener = load_bundle(digits_bundle)
    (detector,) = [found for name, found in screener.detectors.items() if name == "likelihood"]
    score = detector.forward
    monkeypatch.setattr(detector, "forward", lambda evidence: score(evidence) + float(len(evidence.images) > 2))
    caplog.set_level("INFO")
    graph = graph_of(screener, (1, 2, 4))
    assert isinstance(graph, Verdict)
    assert "its graph says something else" in caplog.text


def test_a_likelihood_that_is_no_number_is_an_error(digits_bundle, images):
    screener = load_bundle(digits_bundle)
    judge, slab = judge_of(screener, trace=False)
    screener.network.mixture.means.fill_(float("nan"))
    with pytest.raises(InferenceError, match="not finite"):
        judged(judge, slab, images)


def test_padding_grows_by_powers_of_two():
    assert powers_of_two(1) == (1,)
    assert powers_of_two(8) == (1, 2, 4, 8)
    assert powers_of_two(50) == (1, 2, 4, 8, 16, 32, 50)


def test_the_cpu_is_there_and_other_devices_are_named_when_they_are_not():
    assert resolve_devices("cpu") == ("cpu",)
    with pytest.raises(SettingsError, match="device: cuda:63 is not available here"):
        resolve_devices("cuda:63")
    with pytest.raises(SettingsError, match="twice"):
        resolve_devices("cpu,cpu")
