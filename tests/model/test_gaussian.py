"""The pure maths against torch.distributions, hand-computed numbers and identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from model import gaussian

FORMS = ["unit", "isotropic", "diagonal"]


def draw(form: str, *, num_classes: int = 6, num_features: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    """Means, log-variances (None for unit) and log-priors in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = {"unit": 0, "isotropic": 1, "diagonal": num_features}[form]
    log_variances = normal(num_classes, columns) if columns else None
    return normal(num_classes, num_features) * 2, log_variances, torch.log_softmax(normal(num_classes), 0)


def draw_features(num_inputs: int = 9, num_features: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_inputs, num_features, generator=generator, dtype=torch.float64) * 2


def deviations(means: Tensor, log_variances: Tensor | None) -> Tensor:
    return torch.ones_like(means) if log_variances is None else (0.5 * log_variances).exp().expand_as(means)


@pytest.mark.parametrize("form", FORMS)
def test_log_joint_is_that_of_multivariate_normals(form: str) -> None:
    means, log_variances, log_priors = draw(form)
    features = draw_features()
    classes = MultivariateNormal(means, torch.diag_embed(deviations(means, log_variances) ** 2))
    expected = classes.log_prob(features.unsqueeze(1)) + log_priors
    torch.testing.assert_close(gaussian.log_joint(features, means, log_variances, log_priors), expected)


@pytest.mark.parametrize("form", FORMS)
def test_likelihood_and_posterior_are_those_of_a_mixture(form: str) -> None:
    means, log_variances, log_priors = draw(form)
    features = draw_features()
    components = Independent(Normal(means, deviations(means, log_variances)), 1)
    mixture = MixtureSameFamily(Categorical(logits=log_priors), components)
    joint = gaussian.log_joint(features, means, log_variances, log_priors)
    torch.testing.assert_close(gaussian.log_likelihood(joint), mixture.log_prob(features))
    posterior = gaussian.posterior(joint)
    densities = components.log_prob(features.unsqueeze(1)).exp() * log_priors.exp()
    torch.testing.assert_close(posterior, densities / densities.sum(1, keepdim=True))
    torch.testing.assert_close(posterior.sum(1), torch.ones(9, dtype=torch.float64))


def test_log_joint_by_hand() -> None:
    # d = 2, x = (1, 2). Class 0: mu = (0, 0), lambda = (1, 4), p = 1/4.
    # Class 1: mu = (1, 0), lambda = (2, 1), p = 3/4.
    # d_0 = (1/1 + 4/4) / 2 = 1,  log|Lambda_0| / 2 = ln 4 / 2 = ln 2;  l_0 = ln(1/4) - ln 2 - 1 - ln 2 pi
    # d_1 = (0/2 + 4/1) / 2 = 2,  log|Lambda_1| / 2 = ln 2 / 2;         l_1 = ln(3/4) - ln 2 / 2 - 2 - ln 2 pi
    joint = gaussian.log_joint(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[1.0, 4.0], [2.0, 1.0]]).log(),
        torch.tensor([0.25, 0.75]).log(),
    )
    first = math.log(0.25) - math.log(2) - 1 - math.log(2 * math.pi)
    second = math.log(0.75) - math.log(2) / 2 - 2 - math.log(2 * math.pi)
    torch.testing.assert_close(joint, torch.tensor([[first, second]]))


def test_the_log_determinant_is_in_the_scores() -> None:
    # at the common mean both distances are 0, so only -log|Lambda| / 2 tells a wide class from a narrow one
    means, log_variances = torch.zeros(2, 3), torch.tensor([[0.0], [2.0]])
    joint = gaussian.log_joint(torch.zeros(1, 3), means, log_variances, torch.zeros(2))
    assert (joint[0, 0] - joint[0, 1]).item() == pytest.approx(0.5 * 3 * 2.0)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_log_joint_are_those_of_finite_differences(form: str) -> None:
    arguments = (draw_features(3), *draw(form, num_classes=3))
    for argument in arguments:
        if argument is not None:
            argument.requires_grad_()
    assert torch.autograd.gradcheck(gaussian.log_joint, arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_far_from_the_origin_equals_float64(form: str, offset: float) -> None:
    means, log_variances, log_priors = (None if part is None else part.float() for part in draw(form))
    assert means is not None
    assert log_priors is not None
    means, features = means + offset, draw_features().float() + offset
    exact = gaussian.log_joint(
        features.double(),
        means.double(),
        None if log_variances is None else log_variances.double(),
        log_priors.double(),
    )
    found = gaussian.log_joint(features, means, log_variances, log_priors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_far_features_keep_a_finite_likelihood() -> None:
    means, log_variances, log_priors = draw("diagonal")
    features = torch.full((1, 4), 5e3, dtype=torch.float64)  # norm 1e4, distances up to 1e8
    joint = gaussian.log_joint(features, means, log_variances, log_priors)
    distances = 0.5 * ((features - means) ** 2 / log_variances.exp()).sum(1)
    torch.testing.assert_close(gaussian.log_likelihood(joint), joint.amax(1))
    assert joint.max().item() == pytest.approx(-distances.min().item(), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_moving_everything_changes_nothing(form: str, seed: int, shift: float) -> None:
    means, log_variances, log_priors = draw(form, seed=seed)
    features = draw_features()
    torch.testing.assert_close(
        gaussian.log_joint(features + shift, means + shift, log_variances, log_priors),
        gaussian.log_joint(features, means, log_variances, log_priors),
        rtol=1e-8,
        atol=1e-8,
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.permutations(list(range(6))))
def test_permuting_classes_permutes_columns(form: str, seed: int, order: list[int]) -> None:
    means, log_variances, log_priors = draw(form, seed=seed)
    features = draw_features()
    permuted = None if log_variances is None else log_variances[order]
    torch.testing.assert_close(
        gaussian.log_joint(features, means[order], permuted, log_priors[order]),
        gaussian.log_joint(features, means, log_variances, log_priors)[:, order],
    )


@pytest.mark.parametrize("form", FORMS)
def test_splitting_a_class_in_two_halves_keeps_the_likelihood(form: str) -> None:
    means, log_variances, log_priors = draw(form)
    halved = torch.cat([log_priors[:1] - math.log(2), log_priors[1:], log_priors[:1] - math.log(2)])
    twice = [None if part is None else torch.cat([part, part[:1]]) for part in (means, log_variances)]
    features = draw_features()
    split = gaussian.log_joint(features, twice[0], twice[1], halved)
    whole = gaussian.log_joint(features, means, log_variances, log_priors)
    torch.testing.assert_close(gaussian.log_likelihood(split), gaussian.log_likelihood(whole))


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    means, log_variances, log_priors = (part.float() for part in draw("diagonal", num_classes=50, num_features=64))
    features = draw_features(256, 64).float() * 10
    batched = gaussian.log_joint(features, means, log_variances, log_priors)
    alone = torch.cat([gaussian.log_joint(row[None], means, log_variances, log_priors) for row in features])
    torch.testing.assert_close(alone, batched, rtol=1e-6, atol=0)


@pytest.mark.parametrize("raw", [-200.0, -7.0, -5.0, 0.0, 5.0, 75.0, 78.5, 80.0, 200.0])
def test_floored_variances_are_exact_and_their_logarithms_finite(raw: float) -> None:
    values = torch.full((2, 3), raw)
    expected = values.double().exp() + 1e-3
    inverse = torch.empty_like(values)
    logarithms = gaussian.log_floored_(inverse, values, 1e-3)
    torch.testing.assert_close(inverse.double(), 1 / expected, rtol=1e-6, atol=1e-34)
    torch.testing.assert_close(logarithms.double(), expected.log(), rtol=1e-6, atol=1e-6)
