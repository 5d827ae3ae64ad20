"""The L-GM loss against written-out formulas, cross entropy, finite differences and hand-computed numbers."""

import math
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.errors import ConfigurationError
from model.gaussian import log_joint
from model.losses import LGMLoss, lgm, lgm_function, lgm_terms
from model.mixture import GaussianMixture
from model.schedule import AddUp, LinearRamp, Schedule, StepUp

FORMS = ["unit", "isotropic", "diagonal"]
FLOOR = 0.05


@pytest.fixture(autouse=True, params=["blocks", "one block", "never whole"])
def class_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs with many blocks of classes, with a single one, and without the matrix of scores."""
    form: str = request.param
    for module in (lgm_function, lgm):
        monkeypatch.setattr(module, "CLASS_BLOCK", 1024 if form == "one block" else 2)
    if form == "never whole":
        monkeypatch.setattr(lgm, "LARGEST_WHOLE", 0)
    return form


class Case(NamedTuple):
    mixture: GaussianMixture
    features: Tensor
    labels: Tensor

    def terms(self, alpha: float) -> tuple[Tensor, Tensor]:
        return lgm_terms(self.features, self.labels, self.mixture, alpha)

    def log_joint(self) -> Tensor:
        mixture = self.mixture
        return log_joint(self.features, mixture.means, mixture.log_variances, mixture.log_priors)


def draw(form: str, *, num_inputs: int = 8, num_classes: int = 5, num_features: int = 3, seed: int = 0) -> Case:
    """A case in float64 with every parameter away from its start and a class that occurs twice."""
    generator = torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(
        num_classes, num_features, variance=form, prior="learned", variance_floor=FLOOR, generator=generator
    ).double()
    with torch.no_grad():
        mixture.raw_log_priors.normal_(generator=generator)
        if form != "unit":
            mixture.raw_log_variances.normal_(generator=generator)
    features = torch.randn(num_inputs, num_features, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_inputs,), generator=generator)
    labels[0] = labels[1]
    return Case(mixture, features.requires_grad_(), labels)


def written_out(case: Case, alpha: float, *, weights: Tensor, lambda_: float) -> dict[str, Tensor]:
    """Loss terms and gradients of sum_i weights_i (L_cls + lambda L_lkd), entry by entry over (n, k, d)."""
    mixture = case.mixture
    floored = torch.ones(mixture.num_classes, 1, dtype=torch.float64)
    if mixture.variance != "unit":
        floored = FLOOR + mixture.raw_log_variances.detach().exp()
    variances = floored.expand(-1, mixture.num_features)
    priors = torch.softmax(mixture.raw_log_priors.detach(), 0)
    difference = case.features.detach()[:, None] - mixture.means.detach()
    true = F.one_hot(case.labels, mixture.num_classes).double()
    factor = 1 + alpha * true
    distances = (difference**2 / variances).sum(2) / 2
    scores = priors.log() - variances.log().sum(1) / 2 - distances * factor
    posterior = torch.softmax(scores, 1)
    g = (posterior - true)[:, :, None]
    c, t, w = factor[:, :, None], true[:, :, None], weights[:, None, None]
    scaled = difference / variances
    log_variance = w * (g * (-0.5 + c * scaled * difference / 2) + lambda_ * t * (0.5 - scaled * difference / 2))
    per_class = (weights[:, None] * (posterior - true)).sum(0)
    return {
        "classification": -(scores - scores.logsumexp(1, keepdim=True))[true.bool()],
        "likelihood": (distances + variances.log().sum(1) / 2)[true.bool()],
        "features": (w * (-g * c * scaled + lambda_ * t * scaled)).sum(1),
        "means": (w * (g * c * scaled - lambda_ * t * scaled)).sum(0),
        "log_variances": log_variance.sum(0),
        "raw_log_priors": per_class - priors * per_class.sum(),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 0.0), (0.3, 0.1), (1.0, 0.0), (0.0, 2.0)])
def test_terms_and_gradients_are_those_written_out(form: str, alpha: float, lambda_: float) -> None:
    case = draw(form)
    weights = torch.linspace(-1.0, 2.0, len(case.labels), dtype=torch.float64)
    expected = written_out(case, alpha, weights=weights, lambda_=lambda_)
    classification, likelihood = case.terms(alpha)
    torch.testing.assert_close(classification, expected["classification"])
    torch.testing.assert_close(likelihood, expected["likelihood"])
    (weights * (classification + lambda_ * likelihood)).sum().backward()
    torch.testing.assert_close(case.features.grad, expected["features"])
    torch.testing.assert_close(case.mixture.means.grad, expected["means"])
    torch.testing.assert_close(case.mixture.raw_log_priors.grad, expected["raw_log_priors"])
    if form != "unit":
        raw = case.mixture.raw_log_variances
        per_log_variance = expected["log_variances"]
        if form == "isotropic":
            per_log_variance = per_log_variance.sum(1, keepdim=True)
        # lambda = floor + exp(raw), so dlog lambda / draw = exp(raw) / lambda
        slope = raw.detach().exp() / (FLOOR + raw.detach().exp())
        torch.testing.assert_close(raw.grad, per_log_variance * slope)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_gradients_are_those_of_finite_differences(form: str, alpha: float) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    assert torch.autograd.gradcheck(lambda *_: case.terms(alpha), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_loss_are_those_of_finite_differences(form: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    criterion = LGMLoss(case.mixture, alpha=0.7)
    assert torch.autograd.gradcheck(lambda *_: tuple(criterion(case.features, case.labels)), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_without_margin_and_likelihood_it_is_cross_entropy_of_the_log_joint(form: str) -> None:
    case = draw(form)
    losses = [LGMLoss(case.mixture, alpha=0.0, lambda_=0.0)(case.features, case.labels).total]
    losses.append(F.cross_entropy(case.log_joint(), case.labels))
    torch.testing.assert_close(losses[0], losses[1])
    inputs = (case.features, *case.mixture.parameters())
    ours, theirs = (torch.autograd.grad(loss, inputs) for loss in losses)
    torch.testing.assert_close(ours, theirs)


def test_terms_by_hand() -> None:
    # d = 2, x = (1, 2), true class 0. Class 0: mu = (0, 0), lambda = (1, 4); class 1: mu = (1, 0), lambda = (2, 1);
    # d_0 = (1/1 + 4/4) / 2 = 1, d_1 = (0/2 + 4/1) / 2 = 2; log|Lambda| / 2 = ln 2 and ln 2 / 2; equal priors.
    # alpha = 1/2: s_0 = -ln 2 - 1.5, s_1 = -ln 2 / 2 - 2; L_cls = ln(1 + e^(s_1 - s_0)) = ln(1 + sqrt(2) e^-0.5)
    # L_lkd = d_0 + ln 2 = 1 + ln 2; lambda = 0.1: L = L_cls + 0.1 L_lkd
    mixture = GaussianMixture(2, 2, variance="diagonal")
    with torch.no_grad():
        mixture.means.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        mixture.raw_log_variances.copy_((torch.tensor([[1.0, 4.0], [2.0, 1.0]]) - 1e-3).log())
    terms = LGMLoss(mixture, alpha=0.5, lambda_=0.1)(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    classification = math.log(1 + math.sqrt(2) * math.exp(-0.5))
    assert terms.classification.item() == pytest.approx(classification, rel=1e-6)
    assert terms.likelihood.item() == pytest.approx(1 + math.log(2), rel=1e-6)
    assert terms.total.item() == pytest.approx(classification + 0.1 * (1 + math.log(2)), rel=1e-6)


def test_the_log_determinant_is_in_both_terms() -> None:
    # x at both means: distances 0, equal priors, d = 2, lambda_0 = 1, lambda_1 = e^2.
    # L_cls(z = 0) = ln(1 + e^-2) and L_cls(z = 1) = ln(1 + e^2); without log-determinants both would be ln 2.
    # L_lkd = 0 and 2; without the log-determinant both would be 0.
    mixture = GaussianMixture(2, 2, variance="isotropic")
    with torch.no_grad():
        mixture.means.zero_()
        mixture.raw_log_variances.copy_((torch.tensor([[0.0], [2.0]]).exp() - 1e-3).log())
    classification, likelihood = lgm_terms(torch.zeros(2, 2), torch.tensor([0, 1]), mixture, 0.3)
    expected = torch.tensor([math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))])
    torch.testing.assert_close(classification, expected)
    torch.testing.assert_close(likelihood, torch.tensor([0.0, 2.0]), rtol=1e-5, atol=1e-6)


def test_the_likelihood_is_divided_by_the_same_variance() -> None:
    # d = 1, x - mu = 3, lambda = 4: L_lkd = 9 / 8 + ln 4 / 2
    mixture = GaussianMixture(1, 1, variance="isotropic")
    with torch.no_grad():
        mixture.means.zero_()
        mixture.raw_log_variances.fill_(math.log(4 - 1e-3))
    _, likelihood = lgm_terms(torch.tensor([[3.0]]), torch.tensor([0]), mixture, 0.0)
    assert likelihood.item() == pytest.approx(9 / 8 + math.log(2), rel=1e-6)


@pytest.mark.parametrize("form", ["isotropic", "diagonal"])
def test_equal_variances_of_one_are_unit_variances(form: str) -> None:
    unit, other = draw("unit"), draw(form)
    with torch.no_grad():
        other.mixture.means.copy_(unit.mixture.means)
        other.mixture.raw_log_priors.copy_(unit.mixture.raw_log_priors)
        other.mixture.raw_log_variances.fill_(math.log(1 - FLOOR))
    same = other._replace(features=unit.features, labels=unit.labels)
    torch.testing.assert_close(same.terms(0.3), unit.terms(0.3))


def test_a_diagonal_of_equal_entries_is_isotropic() -> None:
    isotropic, diagonal = draw("isotropic"), draw("diagonal")
    with torch.no_grad():
        diagonal.mixture.means.copy_(isotropic.mixture.means)
        diagonal.mixture.raw_log_priors.copy_(isotropic.mixture.raw_log_priors)
        diagonal.mixture.raw_log_variances.copy_(isotropic.mixture.raw_log_variances.expand(-1, 3))
    same = diagonal._replace(features=isotropic.features, labels=isotropic.labels)
    torch.testing.assert_close(same.terms(0.3), isotropic.terms(0.3))


def test_the_margin_only_raises_the_classification_term() -> None:
    case = draw("diagonal")
    plain, margined = case.terms(0.0), case.terms(0.5)
    assert bool((margined[0] > plain[0]).all())
    torch.testing.assert_close(margined[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_repeating_the_batch_keeps_every_term(form: str) -> None:
    case = draw(form)
    criterion = LGMLoss(case.mixture, alpha=0.3, lambda_=0.1)
    once = criterion(case.features, case.labels)
    thrice = criterion(case.features.repeat(3, 1), case.labels.repeat(3))
    torch.testing.assert_close(tuple(thrice), tuple(once))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_moving_everything_changes_nothing(form: str, seed: int, shift: float) -> None:
    case = draw(form, seed=seed)
    before = case.terms(0.3)
    with torch.no_grad():
        case.mixture.means.add_(shift)
    moved = case._replace(features=case.features + shift)
    torch.testing.assert_close(moved.terms(0.3), before, rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.permutations(list(range(5))))
def test_renaming_classes_changes_nothing(form: str, seed: int, order: list[int]) -> None:
    case = draw(form, seed=seed)
    before = case.terms(0.3)
    with torch.no_grad():
        for parameter in case.mixture.parameters():
            parameter.copy_(parameter[order].clone())
    renamed = case._replace(labels=torch.argsort(torch.tensor(order))[case.labels])
    torch.testing.assert_close(renamed.terms(0.3), before)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.permutations(list(range(8))))
def test_permuting_the_batch_permutes_the_terms(form: str, seed: int, order: list[int]) -> None:
    case = draw(form, seed=seed)
    permuted = case._replace(features=case.features[order], labels=case.labels[order])
    expected = tuple(term[order] for term in case.terms(0.3))
    torch.testing.assert_close(permuted.terms(0.3), expected)


def single_and_double(case: Case, alpha: float) -> tuple[Any, Any]:
    """Terms and gradients in float32, and of the very same numbers in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        mixture = case.mixture.float().to(dtype)
        features = case.features.detach().float().to(dtype).requires_grad_()
        terms = lgm_terms(features, case.labels, mixture, alpha)
        gradients = torch.autograd.grad(terms[0].sum() + 0.1 * terms[1].sum(), (features, *mixture.parameters()))
        results.append([part.double() for part in (*terms, *gradients)])
    return results[0], results[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [1e3, 1e4])
def test_far_features_keep_their_precision(form: str, norm: float) -> None:
    # distances up to 1e8 where the variances are one
    case = draw(form)
    case = case._replace(features=F.normalize(case.features.detach()) * norm)
    found, expected = single_and_double(case, 0.3)
    for one, other in zip(found, expected, strict=True):
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("form", FORMS)
def test_a_common_offset_keeps_the_precision(form: str) -> None:
    case = draw(form)
    with torch.no_grad():
        case.mixture.means.copy_((case.mixture.means + 1e4).float())
    case = case._replace(features=(case.features.detach() + 1e4).float())
    found, expected = single_and_double(case, 0.3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["isotropic", "diagonal"])
@pytest.mark.parametrize("raw", [-200.0, 50.0, 200.0])
def test_extreme_variances_stay_finite(form: str, raw: float) -> None:
    case = draw(form)
    with torch.no_grad():
        case.mixture.raw_log_variances[::2] = raw
    found, expected = single_and_double(case, 0.3)
    for one, other in zip(found, expected, strict=True):
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_class_that_explodes_is_pulled_back() -> None:
    case = draw("isotropic")
    with torch.no_grad():
        case.mixture.raw_log_variances.fill_(200.0)
    case.terms(0.0)[1].sum().backward()
    gradient = case.mixture.raw_log_variances.grad
    assert gradient is not None
    # d/2 an input of the class: descending, the variance shrinks
    torch.testing.assert_close(gradient.squeeze(1), 1.5 * torch.bincount(case.labels, minlength=5).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_under_autocast_are_judged_in_float32(dtype: torch.dtype) -> None:
    case = draw("diagonal")
    mixture, features = case.mixture.float(), case.features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = lgm_terms(features, case.labels, mixture, 0.3)
    terms[0].sum().backward()
    assert terms[0].dtype == terms[1].dtype == torch.float32
    assert features.grad is not None
    assert features.grad.dtype == dtype
    torch.testing.assert_close(terms, lgm_terms(features.float(), case.labels, mixture, 0.3), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_neither_terms_nor_gradients(form: str) -> None:
    case = draw(form, num_features=16)
    mixture, features = case.mixture.float(), case.features.detach().float().requires_grad_()
    inputs = (features, *mixture.parameters())
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = lgm_terms(features, case.labels, mixture, 0.3)
            results.append((*terms, *torch.autograd.grad([term.sum() for term in terms], inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


class LargestOutput(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, Tensor):
                self.num_elements = max(self.num_elements, part.numel())
        return result


@pytest.mark.parametrize("form", FORMS)
def test_nothing_larger_than_the_scores_and_the_parameters_is_ever_made(form: str, class_block: str) -> None:
    num_inputs, num_classes, num_features = 24, 20, 16
    case = draw(form, num_inputs=num_inputs, num_classes=num_classes, num_features=num_features)
    with LargestOutput() as largest:
        sum(term.sum() for term in case.terms(0.3)).backward()
    whole = class_block != "never whole"  # then nothing is larger than what came in
    assert largest.num_elements == num_inputs * (num_classes if whole else num_features)
    with LargestOutput() as largest:
        case.mixture(case.features).sum().backward()
    assert largest.num_elements <= num_inputs * 2 * num_features < num_inputs * num_classes * num_features


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_can_be_walked_twice(form: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    total = sum(term.sum() for term in case.terms(0.3))
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_means_graph_can_be_walked_again_for_another_term(form: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    terms = LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)(case.features, case.labels)
    first = torch.autograd.grad(terms.total, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(terms.total, inputs, retain_graph=True), first, rtol=0, atol=0)
    classification = torch.autograd.grad(terms.classification, inputs)
    torch.testing.assert_close(classification, torch.autograd.grad(case.terms(0.3)[0].mean(), inputs))


def test_one_term_alone_has_its_own_gradient() -> None:
    case = draw("diagonal")
    inputs = (case.features, *case.mixture.parameters())
    both = torch.autograd.grad(sum(term.sum() for term in case.terms(0.3)), inputs)
    parts = [torch.autograd.grad(case.terms(0.3)[term].sum(), inputs) for term in (0, 1)]
    torch.testing.assert_close(tuple(one + other for one, other in zip(*parts, strict=True)), both)


def test_total_is_classification_plus_lambda_times_likelihood() -> None:
    case = draw("diagonal")
    terms = LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)(case.features, case.labels)
    torch.testing.assert_close(terms.total, terms.classification + 0.25 * terms.likelihood)
    classification, likelihood = case.terms(0.3)
    torch.testing.assert_close(terms.classification, classification.mean())
    torch.testing.assert_close(terms.likelihood, likelihood.mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["total", "classification", "likelihood"])
def test_every_mean_has_the_gradient_of_the_averaged_terms(form: str, part: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    classification, likelihood = (term.mean() for term in case.terms(0.3))
    expected = {
        "total": classification + 0.25 * likelihood,
        "classification": classification,
        "likelihood": likelihood,
    }
    found = getattr(LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)(case.features, case.labels), part)
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected[part], inputs))


@pytest.mark.parametrize("form", FORMS)
def test_several_means_at_once_have_the_sum_of_their_gradients(form: str) -> None:
    case = draw(form)
    inputs = (case.features, *case.mixture.parameters())
    terms = LGMLoss(case.mixture, alpha=0.3, lambda_=0.25)(case.features, case.labels)
    found = torch.autograd.grad(terms.total + 2 * terms.classification - 3 * terms.likelihood, inputs)
    classification, likelihood = (term.mean() for term in case.terms(0.3))
    torch.testing.assert_close(found, torch.autograd.grad(3 * classification - 2.75 * likelihood, inputs))


SCHEDULES = [
    StepUp(start=0.1, gamma=2.0, every=2, maximum=0.3),
    AddUp(start=0.1, gamma=0.1, every=2),
    LinearRamp(start=0.1, stop=1.0, num_steps=6),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_schedule_goes_on_where_it_was(schedule: Schedule) -> None:
    case = draw("unit")
    whole = LGMLoss(case.mixture, alpha=schedule, lambda_=schedule)
    values = []
    for _ in range(6):
        values.append((whole.alpha, whole.lambda_))
        whole(case.features, case.labels)
    first = LGMLoss(case.mixture, alpha=schedule, lambda_=schedule)
    for _ in range(3):
        first(case.features, case.labels)
    resumed = LGMLoss(case.mixture, alpha=schedule, lambda_=schedule)
    resumed.load_state_dict(first.state_dict())
    assert resumed.step == 3
    for expected in values[3:]:
        assert (resumed.alpha, resumed.lambda_) == expected
        resumed(case.features, case.labels)
    assert values == [(schedule(step), schedule(step)) for step in range(6)]


def test_the_schedule_reaches_the_loss() -> None:
    case = draw("unit")
    criterion = LGMLoss(case.mixture, alpha=AddUp(start=0.0, gamma=0.5, every=1), lambda_=0.0)
    for alpha in (0.0, 0.5, 1.0):
        torch.testing.assert_close(criterion(case.features, case.labels).total, case.terms(alpha)[0].mean())


def test_only_training_steps_count() -> None:
    case = draw("unit")
    criterion = LGMLoss(case.mixture, alpha=0.3)
    criterion(case.features, case.labels)
    with torch.no_grad():
        criterion(case.features, case.labels)
    criterion.eval()
    criterion(case.features, case.labels)
    assert criterion.step == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block_size", [1, 7, 99])
def test_blocks_give_the_loss_and_gradients_of_the_whole_matrix(form: str, block_size: int) -> None:
    """In float32, means of classes far apart, a block that is cut short, and blocks without any true class."""
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(100, 8, variance=form, prior="learned", generator=generator)
    features = torch.randn(33, 8, generator=generator).mul_(3).requires_grad_()
    labels = torch.randint(100, (33,), generator=generator) // 30 * 30
    found = []
    for size in (block_size, 100):
        terms = LGMLoss(mixture, alpha=0.3, lambda_=0.1, block_size=size)(features, labels)
        found.append((terms, torch.autograd.grad(terms.total, (features, *mixture.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_many_classes_are_taken_in_blocks_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lgm, "LARGEST_WHOLE", 32 * 100)
    monkeypatch.setattr(lgm, "CLASS_BLOCK", 2)
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(100, 2, generator=generator)
    largest = []
    for num_inputs in (32, 33):
        features = torch.randn(num_inputs, 2, generator=generator)
        with LargestOutput() as made:
            LGMLoss(mixture)(features, torch.arange(num_inputs)).total.backward()
        largest.append(made.num_elements)
    assert largest == [32 * 100, 100 * 2]  # the scores; the gradient of the means


def test_a_block_holds_at_least_one_class() -> None:
    with pytest.raises(ConfigurationError, match="block_size must be at least 1, got 0"):
        LGMLoss(GaussianMixture(3, 2), block_size=0)


@pytest.mark.parametrize("block_size", [2.5, True, "3"])
def test_a_number_of_classes_is_an_integer(block_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a caller meets it
    with pytest.raises(ConfigurationError, match=f"block_size must be an integer, got {block_size!r}"):
        LGMLoss(GaussianMixture(3, 2), block_size=block_size)


@pytest.mark.parametrize("form", FORMS)
def test_three_lines_in_a_loop_of_ones_own_learn(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (96,), generator=generator)
    inputs = 3 * F.one_hot(labels, 3) + torch.randn(96, 3, generator=generator)
    network = torch.nn.Linear(3, 2)
    torch.nn.init.normal_(network.weight, generator=generator)
    mixture = GaussianMixture(3, 2, variance=form, generator=generator)
    criterion = LGMLoss(mixture, alpha=0.3, lambda_=0.1)
    optimizer = torch.optim.SGD([*network.parameters(), *mixture.parameters()], lr=0.1)
    totals = []
    for _ in range(60):
        optimizer.zero_grad()
        total = criterion(network(inputs), labels).total
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.5 * totals[0]
    assert (mixture(network(inputs)).argmax(1) == labels).float().mean().item() > 0.9


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((0, 3), [], r"features must be \(n >= 1, 3\) for this mixture, got \(0, 3\)"),
        ((2, 4), [0, 1], r"features must be \(n >= 1, 3\) for this mixture, got \(2, 4\)"),
        ((2, 3, 1), [0, 1], r"features must be \(n >= 1, 3\) for this mixture, got \(2, 3, 1\)"),
        ((2, 3), [0], r"labels must be 2 integers, got torch.int64 \(1,\)"),
        ((2, 3), [0.0, 1.0], "labels must be 2 integers, got torch.float32"),
        ((2, 3), [0, 5], r"labels must lie in \[0, 5\), got 0 to 5"),
        ((2, 3), [-1, 4], r"labels must lie in \[0, 5\), got -1 to 4"),
    ],
)
def test_what_does_not_fit_the_mixture_says_so(shape: tuple[int, ...], labels: list[float], message: str) -> None:
    criterion = LGMLoss(GaussianMixture(5, 3))
    with pytest.raises(ConfigurationError, match=message):
        criterion(torch.zeros(shape), torch.tensor(labels, dtype=torch.long if not labels else None))
    assert criterion.step == 0


@pytest.mark.parametrize("label", [-1, 50])
@pytest.mark.parametrize("num_inputs", [1, 300])
def test_one_label_out_of_range_is_found_in_any_batch(num_inputs: int, label: int) -> None:
    criterion, labels = LGMLoss(GaussianMixture(50, 128)), torch.zeros(num_inputs, dtype=torch.long)
    labels[-1] = label
    with pytest.raises(ConfigurationError, match=r"labels must lie in \[0, 50\)"):
        criterion(torch.zeros(num_inputs, 128), labels)


@pytest.mark.parametrize("name", ["alpha", "lambda_"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_negative_or_infinite_coefficients_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match="must be a finite number of zero or more"):
        LGMLoss(GaussianMixture(5, 3), **{name: value})


@pytest.mark.parametrize("name", ["alpha", "lambda_"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_schedule_that_leaves_the_coefficients_range_is_refused_at_its_step(name: str, value: float) -> None:
    criterion = LGMLoss(GaussianMixture(5, 3), **{name: lambda step: 0.1 if step == 0 else value})
    batch = torch.zeros(2, 3), torch.tensor([0, 1])
    criterion(*batch)
    with pytest.raises(ConfigurationError, match=f"{name} must be a finite number of zero or more, got {value}"):
        criterion(*batch)
    assert criterion.step == 1
