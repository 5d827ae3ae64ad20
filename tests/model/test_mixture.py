import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from model import mixture as mixture_module
from model.errors import ConfigurationError
from model.losses import LGMLoss
from model.mixture import GaussianMixture

FORMS = ["unit", "isotropic", "diagonal"]
PRIORS = ["uniform", "counts", "learned"]


def build(variance: str, prior: str = "uniform", *, num_classes: int = 5, num_features: int = 3) -> GaussianMixture:
    """A mixture with every parameter away from its start, in float64."""
    generator = torch.Generator().manual_seed(3)
    mixture = GaussianMixture(
        num_classes, num_features, variance=variance, prior=prior, generator=generator, variance_floor=0.05
    ).double()
    with torch.no_grad():
        if variance != "unit":
            mixture.raw_log_variances.normal_(generator=generator)
        if prior == "learned":
            mixture.raw_log_priors.normal_(generator=generator)
    if prior == "counts":
        mixture.set_priors(torch.tensor([0, 1, 4, 9, 16]))
    return mixture


def variances(mixture: GaussianMixture) -> Tensor:
    if mixture.variance == "unit":
        return torch.ones_like(mixture.means)
    return (0.05 + mixture.raw_log_variances.exp()).expand_as(mixture.means)


@pytest.mark.parametrize("variance", FORMS)
@pytest.mark.parametrize("prior", PRIORS)
def test_the_head_is_the_mixture_of_torch_distributions(variance: str, prior: str) -> None:
    mixture = build(variance, prior)
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    components = Independent(Normal(mixture.means, variances(mixture).sqrt()), 1)
    # the counts of `build`, each plus one, over 35
    counted = torch.tensor([1, 2, 5, 10, 17], dtype=torch.float64) / 35
    probabilities = {
        "uniform": torch.full((5,), 0.2, dtype=torch.float64),
        "counts": counted,
        "learned": torch.softmax(mixture.raw_log_priors, 0),
    }[prior]
    oracle = MixtureSameFamily(Categorical(probs=probabilities), components)
    # priors that are a buffer were made in float32
    torch.testing.assert_close(mixture.log_likelihood(features), oracle.log_prob(features), rtol=1e-6, atol=1e-6)
    expected = components.log_prob(features.unsqueeze(1)) + probabilities.log()
    torch.testing.assert_close(mixture(features), expected, rtol=1e-6, atol=1e-6)


def test_the_start_is_unit_variances_and_uniform_priors() -> None:
    for variance, columns in (("isotropic", 1), ("diagonal", 3)):
        log_variances = GaussianMixture(5, 3, variance=variance).log_variances
        assert log_variances is not None
        torch.testing.assert_close(log_variances, torch.zeros(5, columns), rtol=0, atol=1e-6)
    for prior in PRIORS:
        torch.testing.assert_close(GaussianMixture(5, 3, prior=prior).log_priors.exp(), torch.full((5,), 0.2))
    assert GaussianMixture(5, 3).log_variances is None


def test_what_is_learned_is_a_parameter_and_nothing_else() -> None:
    def names(variance: str, prior: str) -> set[str]:
        return {name for name, _ in GaussianMixture(5, 3, variance=variance, prior=prior).named_parameters()}

    assert names("unit", "uniform") == names("unit", "counts") == {"means"}
    assert names("isotropic", "learned") == {"means", "raw_log_variances", "raw_log_priors"}
    assert GaussianMixture(5, 3, variance="isotropic").raw_log_variances.shape == (5, 1)
    assert GaussianMixture(5, 3, variance="diagonal").raw_log_variances.shape == (5, 3)


def test_initial_means_have_the_stated_scale_and_follow_the_generator() -> None:
    first, second = (
        GaussianMixture(200, 100, initial_scale=3.0, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first.means, second.means)
    assert first.means.std().item() == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("num_features", [2, 64, 2_000])
def test_means_start_about_two_apart_whatever_the_number_of_features(num_features: int) -> None:
    """So the first log joints differ by nats, as those of a linear layer do, not by hundreds."""
    means = GaussianMixture(500, num_features, generator=torch.Generator().manual_seed(7)).means
    squares = torch.pdist(means).square()
    assert squares.mean().sqrt().item() == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("margin", [0.0, 0.5, 100.0])
def test_inference_knows_no_margin(margin: float) -> None:
    mixture, features = build("diagonal"), torch.randn(6, 3, dtype=torch.float64)
    before = mixture(features)
    criterion = LGMLoss(mixture, alpha=margin, lambda_=0.0)
    criterion(features, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(mixture(features), before, rtol=0, atol=0)
    torch.testing.assert_close(criterion.mixture.eval()(features), before, rtol=0, atol=0)


@pytest.mark.parametrize("variance", FORMS)
def test_a_prediction_is_the_argmax_though_it_sees_few_classes_at_a_time(
    variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(11, 4, variance=variance, prior="learned", generator=generator)
    with torch.no_grad():
        mixture.raw_log_priors.normal_(generator=generator)
        mixture.means[7] = mixture.means[2]
    features = torch.cat([torch.randn(50, 4, generator=generator), mixture.means.detach()])
    expected = mixture(features)
    for size in (1, 3, 1024):
        monkeypatch.setattr(mixture_module, "CLASS_BLOCK", size)
        highest, predicted = mixture.best(features)
        assert torch.equal(predicted, expected.argmax(1))
        torch.testing.assert_close(highest, expected.amax(1))
        assert torch.equal(mixture.predict(features), predicted)


def test_of_equal_classes_the_first_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = GaussianMixture(7, 2)
    with torch.no_grad():
        mixture.means.zero_()
    for size in (2, 1024):
        monkeypatch.setattr(mixture_module, "CLASS_BLOCK", size)
        assert mixture.predict(torch.ones(3, 2)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("variance", FORMS)
def test_a_row_alone_equals_the_row_in_a_batch(variance: str) -> None:
    mixture = GaussianMixture(40, 32, variance=variance)
    features = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)) * 30
    alone = torch.cat([mixture(row[None]) for row in features])
    torch.testing.assert_close(alone, mixture(features), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_under_autocast_are_scored_in_full(dtype: torch.dtype) -> None:
    mixture = GaussianMixture(5, 3, variance="diagonal")
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixture(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mixture(features.float()), rtol=0, atol=0)
    torch.testing.assert_close(mixture.best(features), mixture.best(features.float()), rtol=0, atol=0)


@pytest.mark.parametrize("variance", ["isotropic", "diagonal"])
def test_variances_never_fall_below_the_floor_and_can_grow_again(variance: str) -> None:
    mixture = GaussianMixture(3, 2, variance=variance, variance_floor=0.01)
    features, labels = mixture.means.detach().clone(), torch.arange(3)
    criterion = LGMLoss(mixture, alpha=0.0, lambda_=1.0)

    def train(inputs: Tensor, learning_rate: float, num_steps: int) -> Tensor:
        optimizer = torch.optim.SGD([mixture.raw_log_variances], lr=learning_rate)
        for _ in range(num_steps):
            optimizer.zero_grad()
            criterion(inputs, labels).total.backward()
            optimizer.step()
        log_variances = mixture.log_variances
        assert log_variances is not None
        return log_variances.detach().exp()

    # features at their means: nothing holds the variances up
    shrunk = train(features, 20.0, 50)
    assert bool((shrunk >= 0.01 * (1 - 1e-6)).all())
    assert shrunk.max().item() < 0.02
    # features a whole unit away from their means: their likelihood is largest at variances of one
    criterion = LGMLoss(mixture, alpha=0.0, lambda_=100.0)
    grown = train(features + 1.0, 0.003, 400)
    torch.testing.assert_close(grown, torch.ones_like(grown), rtol=0.05, atol=0)


def test_set_priors_smooths_by_one() -> None:
    mixture = GaussianMixture(3, 2, prior="counts")
    mixture.set_priors(torch.tensor([0, 2, 5]))
    # (0 + 1, 2 + 1, 5 + 1) / 10
    torch.testing.assert_close(mixture.log_priors.exp(), torch.tensor([0.1, 0.3, 0.6]))
    assert "raw_log_priors" in mixture.state_dict()


def test_set_means_takes_class_means_and_leaves_absent_classes() -> None:
    mixture = GaussianMixture(3, 2)
    kept = mixture.means[1].detach().clone()
    mixture.set_means(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]), torch.tensor([0, 0, 2]))
    torch.testing.assert_close(
        mixture.means.detach(), torch.stack([torch.tensor([2.0, 3.0]), kept, torch.full((2,), 5.0)])
    )
    assert mixture.means.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_features": -1}, "num_features must be at least 1, got -1"),
        ({"variance": "full"}, "variance must be one of unit, isotropic, diagonal, got 'full'"),
        ({"prior": "flat"}, "prior must be one of uniform, counts, learned, got 'flat'"),
        ({"variance_floor": 0.0}, r"variance_floor must lie in \(0, 1\), got 0.0"),
        ({"variance_floor": 1.0}, r"variance_floor must lie in \(0, 1\), got 1.0"),
        ({"variance_floor": math.nan}, r"variance_floor must lie in \(0, 1\), got nan"),
        ({"initial_scale": 0.0}, "initial_scale must be a finite number above 0, got 0.0"),
        ({"initial_scale": math.inf}, "initial_scale must be a finite number above 0, got inf"),
        ({"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
        ({"num_classes": True}, "num_classes must be an integer, got True"),
        ({"num_features": "4"}, "num_features must be an integer, got '4'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_built_says_so(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GaussianMixture(**{"num_classes": 3, "num_features": 2, **changes})


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, -1]])
def test_set_priors_refuses_what_is_not_a_count_per_class(counts: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="label_counts must be 3 counts of zero or more"):
        GaussianMixture(3, 2, prior="counts").set_priors(torch.tensor(counts))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(1, 4), torch.tensor([0]), r"features must be \(n, 2\), got \(1, 4\)"),
        (torch.zeros(2), torch.tensor([0]), r"features must be \(n, 2\), got \(2,\)"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "features must be finite"),
        (torch.zeros(1, 2), torch.tensor([3]), r"labels must lie in \[0, 3\)"),
        (torch.zeros(1, 2), torch.tensor([-1]), r"labels must lie in \[0, 3\)"),
        (torch.zeros(1, 2), torch.tensor([0.0]), r"labels must be 1 integers, got torch.float32 \(1,\)"),
        (torch.zeros(2, 2), torch.tensor([0]), r"labels must be 2 integers, got torch.int64 \(1,\)"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_gaussians_are_not_set_from_what_does_not_fit(features: Tensor, labels: Tensor, message: str) -> None:
    mixture = GaussianMixture(3, 2, variance="diagonal")
    for change in (mixture.set_means, mixture.set_variances):
        with pytest.raises(ConfigurationError, match=message):
            change(features, labels)


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (2,)])
@pytest.mark.usefixtures("without_type_checks")
def test_features_of_another_width_are_not_scored(shape: tuple[int, ...]) -> None:
    mixture = GaussianMixture(3, 2)
    for ask in (mixture, mixture.predict, mixture.log_likelihood):
        with pytest.raises(ConfigurationError, match=r"features must be \(n, 2\), got "):
            ask(torch.zeros(shape))


@pytest.mark.parametrize("variance", ["isotropic", "diagonal"])
def test_a_class_of_a_million_features_has_their_mean_and_variance(variance: str) -> None:
    features = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(3)) + 101
    labels = torch.zeros(len(features), dtype=torch.int64)
    mixture = GaussianMixture(2, 1, variance=variance)
    mixture.set_means(features, labels)
    mixture.set_variances(features, labels)
    assert mixture.log_variances is not None
    assert mixture.means.detach()[0].item() == pytest.approx(float(features.double().mean()), rel=1e-6)
    assert mixture.log_variances.detach()[0].exp().item() == pytest.approx(float(features.double().var()), rel=1e-4)


@pytest.mark.parametrize("variance", FORMS)
def test_set_variances_takes_those_of_each_class_and_leaves_classes_of_one(variance: str) -> None:
    # class 0: x = (0, 0), (2, 6), mean (1, 3), variances 1 and 9; class 1 has one feature, class 2 two that are equal
    mixture = GaussianMixture(3, 2, variance=variance)
    features = torch.tensor([[0.0, 0.0], [2.0, 6.0], [5.0, 5.0], [1.0, 1.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    mixture.set_means(features, labels)
    mixture.set_variances(features, labels)
    if mixture.log_variances is None:
        assert variance == "unit"
        return
    found = mixture.log_variances.detach().exp()
    torch.testing.assert_close(found[0], torch.tensor([5.0] if variance == "isotropic" else [1.0, 9.0]))
    torch.testing.assert_close(found[1], torch.ones_like(found[1]))
    torch.testing.assert_close(found[2], torch.full_like(found[2], 1e-3), rtol=2e-3, atol=0)
    assert mixture.raw_log_variances.requires_grad


def test_its_description_names_sizes_and_forms() -> None:
    assert "3 classes, 2 features, variance=unit, prior=uniform" in repr(GaussianMixture(3, 2))
