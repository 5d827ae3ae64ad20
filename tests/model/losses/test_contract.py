"""What every loss owes: one contract over all of them."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.errors import ConfigurationError
from model.losses import LGMLoss, LossTerms, RivalLoss
from model.losses.base import LinearLoss
from model.losses.known import LOSSES, RIVALS, check_options, options_of, title_of
from model.losses.pairs import PairLoss
from model.mixture import GaussianMixture

CLASSES, FEATURES = 4, 3
VARIANCES = ["unit", "isotropic", "diagonal"]
PAIRS = ["contrastive", "triplet", "quadruplet"]
CASES = [*RIVALS, "gm", *(f"lgm {variance}" for variance in VARIANCES)]


def build(case: str, num_classes: int = CLASSES, num_features: int = FEATURES) -> RivalLoss | LGMLoss:
    torch.manual_seed(0)
    name, _, variance = case.partition(" ")
    if name in RIVALS:
        teacher = {"teacher": lambda images: 8 * images.flatten(1)}
        return RIVALS[name](num_classes, num_features, **(teacher if name == "distillation" else {}))
    mixture = GaussianMixture(num_classes, num_features, variance=variance or "unit")
    return LGMLoss(mixture, alpha=0.0 if name == "gm" else 0.3, lambda_=0.1)


def ask(criterion: RivalLoss | LGMLoss, features: Tensor, labels: Tensor) -> LossTerms:
    see: Callable[[Tensor], None] | None = getattr(criterion, "see", None)
    if see is not None:
        see(nn.functional.one_hot(labels, criterion.num_classes).float().view(len(labels), 1, 1, -1))  # type: ignore[union-attr]
    terms: LossTerms = criterion(features, labels)
    return terms


def draw(count: int = 12, num_classes: int = CLASSES, num_features: int = FEATURES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % num_classes
    return torch.randn(count, num_features, generator=generator), labels


def score(criterion: RivalLoss | LGMLoss, features: Tensor) -> Tensor:
    scores: Tensor = criterion.mixture(features) if isinstance(criterion, LGMLoss) else criterion.logits(features)
    return scores


@pytest.mark.parametrize("case", CASES)
def test_it_is_finite_and_differentiable(case: str) -> None:
    criterion, (features, labels) = build(case), draw()
    features.requires_grad_()
    terms = ask(criterion, features, labels)
    assert all(term.shape == () and math.isfinite(term.detach()) for term in terms)
    assert float(terms.classification.detach()) >= 0
    terms.total.backward()
    gradients = [features.grad, *(found.grad for found in criterion.parameters() if found.requires_grad)]
    for gradient in gradients:
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        assert bool((gradient != 0).any())


@pytest.mark.parametrize("case", CASES)
def test_the_total_is_the_sum_of_its_terms(case: str) -> None:
    criterion = build(case)
    terms = ask(criterion, *draw())
    assert terms.total.item() == pytest.approx(
        terms.classification.item() + criterion.lambda_ * terms.likelihood.item(), rel=1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    criterion, (features, labels) = build(case).double().eval(), draw()
    features = features.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: ask(criterion, moved, labels).total, (features,))


@pytest.mark.parametrize("case", CASES)
def test_it_falls_on_separable_data_until_every_class_is_told(case: str) -> None:
    """Gradient descent on the features' map and the loss's own parameters, as in a training loop of three lines."""
    criterion = build(case)
    torch.manual_seed(2)
    labels = torch.arange(60) % CLASSES
    inputs = nn.functional.one_hot(labels, CLASSES) + 0.05 * torch.randn(60, CLASSES)
    network = nn.Linear(CLASSES, FEATURES)
    optimizer = torch.optim.SGD([*network.parameters(), *criterion.parameters()], lr=0.1, momentum=0.9)
    before = ask(criterion, network(inputs), labels).total.item()
    for _ in range(150):
        optimizer.zero_grad()
        ask(criterion, network(inputs), labels).total.backward()
        optimizer.step()
    assert bool((score(criterion, network(inputs)).argmax(1) == labels).all())
    assert ask(copy.deepcopy(criterion), network(inputs), labels).total.item() < before


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (torch.zeros(2, FEATURES), torch.tensor([0, CLASSES]), r"labels must lie in \[0, 4\)"),
        (torch.zeros(2, FEATURES), torch.tensor([-1, 0]), r"labels must lie in \[0, 4\)"),
        (torch.zeros(2, FEATURES), torch.tensor([0.0, 1.0]), "labels must be 2 integers"),
        (torch.zeros(2, FEATURES), torch.tensor([0]), "labels must be 2 integers"),
        (torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.long), "features must be"),
        (torch.zeros(2, FEATURES + 1), torch.tensor([0, 1]), "features must be"),
    ],
    ids=["above", "below", "floats", "too few", "empty", "too wide"],
)
def test_what_does_not_fit_is_refused(case: str, features: Tensor, labels: Tensor, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build(case)(features, labels)


@pytest.mark.parametrize("case", CASES)
def test_extreme_features_stay_finite(case: str) -> None:
    """Zero vectors have no direction, long ones no float32 square to spare, and equal ones no distance."""
    criterion, labels = build(case), torch.arange(8) % CLASSES
    for features in (torch.zeros(8, FEATURES), torch.full((8, FEATURES), 1e4), torch.eye(8, FEATURES)):
        moved = features.clone().requires_grad_()
        total = ask(criterion, moved, labels).total
        total.backward()
        assert math.isfinite(total.detach())
        assert moved.grad is not None
        assert bool(moved.grad.isfinite().all())


@pytest.mark.parametrize("overflow", [math.inf, math.nan, 1e30])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_that_overflowed_leaves_nothing_behind(case: str, overflow: float) -> None:
    criterion, (features, labels) = build(case), draw()
    spoilt = features.clone()
    spoilt[:CLASSES] = overflow
    ask(criterion, spoilt, labels)
    assert all(bool(buffer.isfinite().all()) for buffer in criterion.buffers())
    assert all(math.isfinite(term.detach()) for term in ask(criterion, features, labels))


@pytest.mark.parametrize("case", CASES)
def test_half_precision_features_are_judged_in_float32(case: str) -> None:
    features, labels = draw()
    half = features.bfloat16()
    found = ask(build(case), half, labels)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found, ask(build(case), half.float(), labels))


@pytest.mark.parametrize("case", CASES)
def test_float64_features_are_judged_and_have_their_gradient_in_their_own_dtype(case: str) -> None:
    criterion, (features, labels) = build(case), draw()
    wide = features.double().requires_grad_()
    found = ask(criterion, wide, labels).total
    found.backward()
    assert wide.grad is not None
    torch.testing.assert_close(found.float(), ask(build(case), features, labels).total)
    assert {parameter.dtype for parameter in criterion.parameters()} == {torch.float32} or case in PAIRS


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_features_of_any_dtype_are_scored_in_float32(case: str, dtype: torch.dtype, autocast: bool) -> None:
    criterion, (features, labels) = build(case), draw()
    ask(criterion, features, labels)
    features = features.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = score(criterion, features)
    assert found.dtype == torch.float32 or isinstance(criterion, LGMLoss)
    torch.testing.assert_close(found.float(), score(criterion, features.float()))


@pytest.mark.parametrize("case", RIVALS)
@pytest.mark.parametrize("shape", [(FEATURES,), (2, FEATURES + 1), (2, 1, FEATURES)], ids=str)
def test_features_of_another_shape_are_not_scored(case: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"features must be \(n >= 0, 3\)"):
        score(build(case), torch.zeros(shape))


@pytest.mark.parametrize("case", [case for case in CASES if case not in RIVALS])
def test_a_mixture_in_half_precision_is_judged_in_float32(case: str) -> None:
    features, labels = draw()
    half, rounded = build(case).bfloat16(), build(case).bfloat16().float()
    found, expected = ask(half, features.bfloat16(), labels), ask(rounded, features.bfloat16(), labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", RIVALS)
def test_a_rival_in_half_precision_is_refused(case: str) -> None:
    with pytest.raises(ConfigurationError, match=r"this loss holds torch\.bfloat16; keep it in float32"):
        ask(build(case).bfloat16(), *draw())
    with pytest.raises(ConfigurationError, match=r"this loss holds torch\.bfloat16; keep it in float32"):
        score(build(case).bfloat16(), draw()[0])


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_counted_in_training_alone_and_saved(case: str) -> None:
    criterion, (features, labels) = build(case), draw()
    ask(criterion, features, labels)
    with torch.no_grad():
        ask(criterion, features, labels)
    ask(criterion.eval(), features, labels)
    assert criterion.step == 1
    again = build(case)
    again.load_state_dict(criterion.state_dict())
    assert again.step == 1
    torch.testing.assert_close(ask(again.eval(), features, labels), ask(criterion, features, labels))


class LargestOutput(TorchDispatchMode):
    """The most values in any tensor made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = function(*args, **(kwargs or {}))
        found = output if isinstance(output, (tuple, list)) else [output]
        self.size = max(self.size, *(part.numel() if isinstance(part, Tensor) else 0 for part in found))
        return output


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_of_scores_and_weights(case: str) -> None:
    """O(n k + k d) for classifiers; pairs of a batch are O(n^2), triplets fewer than n^3 / 2."""
    count, num_classes, num_features = 40, 30, 20
    criterion, (features, labels) = build(case, num_classes, num_features), draw(count, num_classes, num_features)
    features.requires_grad_()
    with LargestOutput() as largest:
        ask(criterion, features, labels).total.backward()
    limit = max(count * num_classes, num_classes * num_features, count * count)
    if case == "triplet":
        limit = count**3
    elif not isinstance(criterion, PairLoss):
        limit = max(count * num_classes, num_classes * num_features)
    assert largest.size <= limit


@pytest.mark.parametrize("name", RIVALS)
def test_options_reach_the_loss_and_wrong_ones_are_refused(name: str) -> None:
    for option in options_of(name):
        check_options(name, {option})
    with pytest.raises(ConfigurationError, match=f"loss.bogus: {name} has no such option"):
        check_options(name, {"bogus"})


def test_unknown_losses_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"loss\.name 'hinge' does not exist; there are: softmax, label"):
        check_options("hinge", set())


@pytest.mark.parametrize("name", LOSSES)
def test_each_says_what_it_is(name: str) -> None:
    assert len(title_of(name)) > 5
    if name in RIVALS:
        told = RIVALS[name].__doc__ or ""
        assert all(option in told for option in options_of(name) if option != "centre_rate"), name


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("label-smoothing", {"smoothing": 1.5}, r"smoothing must lie in \[0, 1\]"),
        ("noisy-softmax", {"noise": -1.0}, "noise must be a finite number of zero or more"),
        ("center", {"centre_rate": 2.0}, r"centre_rate must lie in \[0, 1\]"),
        ("center", {"weight": math.nan}, "weight must be a finite number of zero or more"),
        ("l-softmax", {"margin": 1.5}, "margin must be a whole number"),
        ("a-softmax", {"margin": 0.0}, "margin must be a whole number"),
        ("a-softmax", {"margin": 21}, "margin must be a whole number from 1 to 20, got 21"),
        ("l-softmax", {"margin": math.nan}, "margin must be a whole number"),
        ("cosface", {"scale": 0.0}, "scale must be a finite number above zero"),
        ("arcface", {"margin": 3.2}, r"margin must lie in \[0, pi\)"),
        ("coco", {"epsilon": 0.0}, "epsilon must be a finite number above zero"),
        ("coco", {"epsilon": 1e3}, "epsilon must be below ln 4, the loss of chance, got 1000"),
        ("contrastive", {"margin": 0.0}, "margin must be a finite number above zero"),
        ("quadruplet", {"second_margin": -1.0}, "second_margin must be a finite number above zero"),
        ("feature-incay", {"epsilon": math.inf}, "epsilon must be a finite number above zero"),
        ("triplet", {"margin": -1.0}, "margin must be a finite number above zero"),
        ("l2-softmax", {"scale": -1.0}, "scale must be a finite number above zero"),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RIVALS[name](CLASSES, FEATURES, **options)


def test_linear_classifiers_have_a_bias() -> None:
    kinds = [kind for kind in RIVALS.values() if issubclass(kind, LinearLoss)]
    assert len(kinds) == 5
