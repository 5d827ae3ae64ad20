import pytest
import torch
from torch import Tensor

from detectors import Screener
from detectors.evaluation.hunt import Hunt, look_at
from detectors.evaluation.random_search import random_search, window_share
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit


@pytest.fixture(scope="module")
def batch(digits_checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """40 test images; every second label is a wrong one, so that p-values of all sizes have a wrong class."""
    test = load_splits(digits_checkpoint.config.data).test
    labels = test.labels[:40].clone()
    labels[::2] = (labels[::2] + 1) % 10
    return to_unit(test.images[:40]), labels


def ranks(screener: Screener, images: Tensor, labels: Tensor) -> Tensor:
    """Wrong before right, then by p-value, as one number."""
    verdicts = screener.screen(images)
    return 2 * (verdicts.class_index != labels).double() + verdicts.p_value.double()


def test_a_look_sees_what_the_screener_says(digits_screener: Screener, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    look, verdicts = look_at(digits_screener, images, labels), digits_screener.screen(images)
    assert torch.equal(look.wrong, verdicts.class_index != labels)
    assert torch.equal(look.p_value, verdicts.p_value)
    assert torch.allclose(look.suspicion, verdicts.suspicion, rtol=1e-5)
    others = verdicts.probabilities.scatter(1, labels.unsqueeze(1), 0).amax(1)
    expected = (verdicts.probabilities.gather(1, labels.unsqueeze(1)).squeeze(1) / others).log()
    known = expected.isfinite()
    assert torch.allclose(look.margin[known], expected[known], rtol=1e-3, atol=1e-3)
    assert torch.equal(look.margin < 0, look.wrong)


def test_what_is_judged_leads_back_to_the_image_but_is_kept_without_its_graph(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    hunt = Hunt(digits_screener, images, labels, enough=0.5)
    look = hunt.judge(torch.arange(40), images + 0.01)
    assert look.images.is_leaf
    assert (look.suspicion.requires_grad, look.evidence.log_joint.requires_grad) == (True, True)
    assert (look.p_value.requires_grad, hunt.best.requires_grad) == (False, False)
    assert not images.requires_grad


def test_the_hunt_keeps_the_best_and_only_leaves_what_is_convincing(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    hunt = Hunt(digits_screener, images, labels, enough=0.5)
    assert torch.equal(hunt.best, images)
    generator = torch.Generator().manual_seed(0)
    best, rank = images.clone(), ranks(digits_screener, images, labels)
    assert torch.equal(hunt.open_rows(), (rank <= 2.5).nonzero().squeeze(1))
    for attempt in range(6):
        rows = torch.randperm(40, generator=generator)[:30]
        others = images[torch.randperm(40, generator=generator)[:30]]  # noise would be seen, and never better
        candidates = images[rows].lerp(others, 0.04 * attempt)
        hunt.judge(rows, candidates)
        found = ranks(digits_screener, candidates, labels[rows])
        better = found > rank[rows]
        best[rows[better]], rank[rows[better]] = candidates[better], found[better]
    assert torch.equal(hunt.best, best)
    assert torch.equal(hunt.open_rows(), (rank <= 2.5).nonzero().squeeze(1))
    assert 0 < len(hunt.open_rows()) < 40
    assert bool((hunt.best != images).any())


def test_random_search_asks_ten_times_a_step_and_builds_no_graph(
    digits_screener: Screener, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = (tensor[1::2] for tensor in batch)
    hunt = Hunt(digits_screener, images, labels, enough=0.5)
    passes: list[bool] = []
    handle = digits_screener.network.register_forward_hook(
        lambda module, given, activations: passes.append(activations.log_joint.requires_grad)
    )
    random_search(hunt, eps=1e-6, norm="linf", steps=2, generator=torch.Generator().manual_seed(0))
    handle.remove()
    assert passes == 20 * [False]


def test_random_search_s_windows_shrink_as_the_paper_has_it() -> None:
    """Table of Andriushchenko et al. 2020, section 3.1: halved at 10, 50, 200, ... of 10,000 iterations."""
    shares = [window_share(iteration / 10_000) for iteration in (0, 10, 11, 50, 51, 200, 201, 8001, 9999)]
    assert shares == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.8 / 2**9, 0.8 / 2**9]
