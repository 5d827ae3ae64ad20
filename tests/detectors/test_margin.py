"""The margin: the distance of the two most probable classes, whatever the others and the likelihood say."""

from dataclasses import replace

import torch
from torch import Tensor

from detectors.margin import MarginDetector
from tests.detectors.synthetic import make_evidence, make_network, normal


def scores(log_joint: Tensor) -> Tensor:
    evidence = make_evidence(make_network(), normal(len(log_joint), 6))
    found: Tensor = MarginDetector()(replace(evidence, log_joint=log_joint))
    return found


def test_hand_values() -> None:
    log_joint = torch.tensor([[1.0, 0.5, -9.0], [-4.0, 3.0, 0.0], [2.0, -1.0, 2.0], [-900.0, -300.0, 0.0]])
    assert scores(log_joint).tolist() == [-0.5, -3.0, 0.0, -300.0]


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
    assert torch.equal(log_joint.grad, torch.tensor([[-1.0, 1.0, 0.0]]))
