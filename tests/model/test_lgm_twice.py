"""Gradients that are differentiated again, as a penalty on them needs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GaussianMixture, LGMLoss
from model.errors import ConfigurationError
from tests.model.test_lgm import FORMS, Case, draw


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_those_of_finite_differences(form: str) -> None:
    case = draw(form, num_inputs=4)
    criterion = LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)
    inputs = (case.features, *case.mixture.parameters())

    def each_term(*_: Tensor) -> tuple[Tensor, ...]:
        return case.terms(0.3)

    def means(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(criterion(case.features, case.labels))

    assert torch.autograd.gradgradcheck(each_term, inputs)
    assert torch.autograd.gradgradcheck(means, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_same_with_a_graph_and_without(form: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    terms = LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)(case.features, case.labels)
    for term in terms:
        plain = torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)
        graph = torch.autograd.grad(term, inputs, create_graph=True, allow_unused=True)
        torch.testing.assert_close(graph, plain)


@pytest.mark.parametrize("form", FORMS)
def test_a_penalty_on_the_input_reaches_the_network_and_the_mixture(form: str) -> None:
    """At alpha = lambda = 0 the loss is cross entropy of the log joint, whose penalty autograd knows by itself."""
    torch.manual_seed(0)
    network, mixture = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        GaussianMixture(5, 3, variance=form),
    )
    images, labels = torch.randn(16, 6, requires_grad=True), torch.randint(5, (16,))
    criterion = LGMLoss(mixture, alpha=0.0, lambda_=0.0)
    parameters = [*network.parameters(), *mixture.parameters()]

    def penalised(loss: Tensor) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(loss, images, create_graph=True)
        return torch.autograd.grad(loss + 10 * slope.square().sum(), parameters)

    expected = penalised(F.cross_entropy(mixture(network(images)), labels))
    torch.testing.assert_close(penalised(criterion(network(images), labels).total), expected)


def test_in_blocks_a_graph_of_the_gradients_is_refused() -> None:
    case: Case = draw("isotropic")
    total = LGMLoss(case.mixture, block_size=2)(case.features, case.labels).total
    with pytest.raises(ConfigurationError, match="create_graph needs all classes at once"):
        torch.autograd.grad(total, case.features, create_graph=True)
