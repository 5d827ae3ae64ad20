"""The margin: the distance of the two most probable classes, whatever the others and the likelihood say."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detectors.fusion import Surprise
from detectors.margin import LEAST_MARGIN, MarginDetector
from tests.detectors.synthetic import make_evidence, make_network, normal


def scores(log_joint: Tensor) -> Tensor:
    evidence = make_evidence(make_network(), normal(len(log_joint), 6))
    found: Tensor = MarginDetector()(replace(evidence, log_joint=log_joint))
    return found


def test_hand_values() -> None:
    log_joint = torch.tensor([[1.0, 0.5, -9.0], [-4.0, 3.0, 0.0], [2.0, -1.0, 2.0], [-900.0, -300.0, 0.0]])
    expected = [-math.log(margin + 1e-3) for margin in (0.5, 3.0, 0.0, 300.0)]
    assert scores(log_joint).tolist() == pytest.approx(expected)


def test_where_clean_margins_are_uniform_the_score_has_the_exponential_tail_that_the_fusion_extends() -> None:
    """A margin of a tenth of the least clean one is surprising beyond what any clean input was: p near 1 / (10 n)."""
    count = 4096
    margins = torch.arange(1, count + 1) / count * 8
    clean = scores(torch.stack([margins, torch.zeros(count)], 1))
    surprise = Surprise.fit(clean, torch.zeros(count, dtype=torch.long), 1)
    found = surprise(scores(torch.tensor([[0.8, 0.0], [0.08, 0.0], [0.01, 0.0]])), torch.zeros(3, dtype=torch.long))
    expected = torch.tensor([0.1, 0.01, (0.01 + LEAST_MARGIN) / 8]).log().neg()
    assert torch.allclose(found, expected, rtol=0.1)  # the tail is an estimate from eight scores


def test_between_two_classes_it_is_small_and_between_three_no_smaller() -> None:
    just_over, doubtful = torch.tensor([[0.51, 0.49, 0.0], [0.4, 0.3, 0.3]]).log().unbind()
    assert just_over.amax() > doubtful.amax()  # the maximum probability has them the wrong way round
    nearer, further = scores(torch.stack([just_over, doubtful]))
    assert nearer > further


def test_what_all_classes_share_changes_nothing() -> None:
    log_joint = normal(30, 3) * 5
    assert torch.allclose(scores(log_joint - 1e3), scores(log_joint), atol=1e-3)


def test_the_gradient_draws_the_two_classes_together() -> None:
    log_joint = torch.tensor([[0.0, -80.0, -90.0]], requires_grad=True)
    scores(log_joint).sum().backward()
    assert log_joint.grad is not None
    assert torch.allclose(log_joint.grad * 80, torch.tensor([[-1.0, 1.0, 0.0]]), rtol=1e-4)
