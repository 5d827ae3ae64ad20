"""Confidence: the order of 1 - p, with all the resolution that float32 loses near p = 1."""

from dataclasses import replace

import torch
from torch import Tensor

from detectors.confidence import ConfidenceDetector
from tests.detectors.synthetic import make_evidence, make_network, normal


def scores(log_joint: Tensor) -> Tensor:
    evidence = make_evidence(make_network(), normal(len(log_joint), 6))
    found: Tensor = ConfidenceDetector()(replace(evidence, log_joint=log_joint))
    return found


def test_hand_values() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    expected = torch.tensor([0.5, 0.3, 0.2]).log()
    assert torch.allclose(scores(probabilities.log()), expected, atol=1e-6)


def test_posteriors_that_round_to_one_still_differ() -> None:
    log_joint = torch.tensor([[0.0, -30.0, -200.0], [-200.0, 0.0, -60.0], [-900.0, -300.0, 0.0]])
    assert torch.softmax(log_joint, 1).amax(1).tolist() == [1.0, 1.0, 1.0]
    assert torch.allclose(scores(log_joint), torch.tensor([-30.0, -60.0, -300.0]))


def test_what_all_classes_share_changes_nothing() -> None:
    log_joint = normal(30, 3) * 5
    assert torch.allclose(scores(log_joint - 1e3), scores(log_joint), atol=1e-3)


def test_the_gradient_does_not_vanish_where_the_posterior_rounds_to_one() -> None:
    log_joint = torch.tensor([[0.0, -80.0, -90.0]], requires_grad=True)
    scores(log_joint).sum().backward()
    assert log_joint.grad is not None
    assert torch.allclose(log_joint.grad, torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-4)
