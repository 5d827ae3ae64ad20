"""Networks trained with every loss: they learn, resume to the bit, get Gaussians, and refuse what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from model.config import Config, dump_config, parse_config
from model.criterion import fit_gaussians, predictor_of, restore_criterion
from model.data import load_splits
from model.epoch import accuracy
from model.errors import CheckpointError, ConfigurationError, DivergenceError
from model.image_set import to_unit
from model.losses.known import GAUSSIAN, LOSSES, RIVALS
from model.network import Network
from model.overrides import with_loss
from model.train import train
from model.training_log import Silent

BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits"},
    "network": {"backbone": "small28", "width": 4, "num_features": 8},
    "optimizer": {"learning_rate": 0.02},
    "training": {"epochs": 2, "batch_size": 64},
}


def tiny(loss: str, **options: Any) -> Config:
    """Two epochs of twenty steps on digits: half a second."""
    values = with_loss(BASE, loss)
    return parse_config({**values, "loss": {**values["loss"], **options}})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(parse_config({**BASE, "training": {"epochs": 4, "batch_size": 32}}), folder, Silent())
    return folder


def options(loss: str, teacher: Path) -> dict[str, Any]:
    return {"teacher": str(teacher)} if loss == "distillation" else {}


@pytest.fixture(scope="module")
def networks(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run with each loss."""
    folders = {loss: tmp_path_factory.mktemp("run") / loss for loss in LOSSES}
    for loss, folder in folders.items():
        train(tiny(loss, **options(loss, teacher)), folder, Silent())
    return folders


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str, networks: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(networks[loss])
    first, last = checkpoint.history
    assert last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(last["classification"] + last["lambda_"] * last["likelihood"], rel=1e-4)
    assert checkpoint.test_accuracy is not None
    assert checkpoint.test_accuracy > 0.5  # a tenth by chance
    assert last["held_out_accuracy"] > 0.25


@pytest.mark.parametrize("loss", RIVALS)
def test_its_own_classifier_is_restored(loss: str, networks: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(networks[loss])
    network = checkpoint.build_network()
    criterion = restore_criterion(checkpoint, network)
    held_out = load_splits(checkpoint.config.data).calibration
    assert criterion.step == checkpoint.loss_step == 2 * 19
    assert (
        accuracy(network, held_out, predictor_of(network, criterion)) == checkpoint.history[-1]["held_out_accuracy"]
    )


def features_of(checkpoint: Checkpoint) -> tuple[Network, torch.Tensor, torch.Tensor]:
    network, train_set = checkpoint.build_network(), load_splits(checkpoint.config.data).train
    with torch.no_grad():
        return network, network.embed(to_unit(train_set.images)), train_set.labels


def test_gaussians_are_those_of_the_training_images_features(networks: dict[str, Path]) -> None:
    network, features, labels = features_of(load_checkpoint(networks["softmax"]))
    variances = network.mixture.log_variances
    assert variances is not None
    for index in range(10):
        own = features[labels == index]
        torch.testing.assert_close(network.mixture.means[index], own.mean(0), rtol=1e-4, atol=1e-4)
        expected = own.var(0, correction=0).clamp_min(network.mixture.variance_floor)
        torch.testing.assert_close(variances[index].exp(), expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("variance", ["unit", "isotropic"])
def test_other_variance_forms_are_fitted_as_well(variance: str, networks: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(networks["softmax"])
    config = replace(checkpoint.config, mixture=replace(checkpoint.config.mixture, variance=variance))
    network = Network(config.network, config.mixture, num_classes=10, num_channels=1)
    body = {name: values for name, values in checkpoint.network.items() if not name.startswith("mixture.")}
    network.load_state_dict(body, strict=False)
    splits = load_splits(config.data)
    fit_gaussians(network, splits.train)
    _, features, labels = features_of(checkpoint)
    torch.testing.assert_close(network.mixture.means[3], features[labels == 3].mean(0), rtol=1e-4, atol=1e-4)
    if variance == "isotropic":
        assert network.mixture.log_variances is not None
        expected = features[labels == 3].var(0, correction=0).mean()
        torch.testing.assert_close(network.mixture.log_variances[3].exp()[0], expected, rtol=1e-3, atol=1e-6)
    assert accuracy(network, splits.test) > 0.5


@pytest.mark.parametrize("loss", ["center", "l-softmax", "triplet", "noisy-softmax", "arcface"])
def test_a_stopped_run_resumes_to_the_same_end_bit_for_bit(
    loss: str, networks: dict[str, Path], tmp_path: Path
) -> None:
    """The first epoch's checkpoint of a run is what a kill in the second leaves."""
    stopped: list[Checkpoint] = []

    class Stop(Silent):
        def finish_epoch(self, figures: dict[str, float]) -> None:
            if figures["epoch"] == 2:
                stopped.append(load_checkpoint(tmp_path))

    train(tiny(loss), tmp_path, Stop())
    save_checkpoint(stopped[0], tmp_path / FILE_NAME)
    assert load_checkpoint(tmp_path).epoch == 1
    resumed, whole = train(tiny(loss), tmp_path, Silent()), load_checkpoint(networks[loss])
    for name, values in whole.network.items():
        assert torch.equal(values, resumed.network[name]), name
    for name, values in whole.criterion.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(values, resumed.criterion[name]), name


def test_a_checkpoint_from_before_there_were_rivals_is_read(networks: dict[str, Path], tmp_path: Path) -> None:
    values = torch.load(networks["lgm"] / FILE_NAME, weights_only=True)
    del values["criterion"]
    for name in [*values["config"]["loss"]]:
        if name not in ("alpha", "lambda"):
            del values["config"]["loss"][name]
    torch.save(values, tmp_path / FILE_NAME)
    old, new = load_checkpoint(tmp_path), load_checkpoint(networks["lgm"])
    assert old.config == new.config
    assert old.criterion == new.criterion == {}


@pytest.mark.parametrize("loss", GAUSSIAN)
def test_losses_with_a_density_keep_the_gaussians_they_learned(loss: str, networks: dict[str, Path]) -> None:
    network, features, labels = features_of(load_checkpoint(networks[loss]))
    means = torch.stack([features[labels == index].mean(0) for index in range(10)])
    assert not torch.allclose(network.mixture.means, means, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_configuration_passes_through_a_checkpoint(loss: str, teacher: Path) -> None:
    config = tiny(loss, **options(loss, teacher))
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": {"name": "hinge"}}, r"loss\.name 'hinge' does not exist"),
        (
            {"loss": {"name": "softmax", "margin": 0.3}},
            r"loss\.margin: softmax has no such option; it has no options",
        ),
        (
            {"loss": {"name": "cosface", "alpha": 0.3}},
            r"loss\.alpha: cosface has no such option; it has margin, scale",
        ),
        ({"loss": {"margin": 0.3}}, r"loss\.margin: lgm has no such option; it has alpha, lambda"),
        ({"loss": {"name": "gm", "alpha": 0.3}}, r"loss\.alpha: gm has no such option"),
        ({"loss": {"name": "distillation"}}, r"loss\.teacher: distillation needs a finished checkpoint"),
        ({"loss": {"name": "cosface", "scale": "8"}}, r"loss\.scale"),
        (
            {"loss": {"name": "softmax"}, "adversarial": {"eps": 0.1}},
            r"adversarial\.eps: images are attacked through",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_config({**BASE, **values})


def test_an_option_out_of_range_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"margin must lie in \[0, pi\)"):
        train(tiny("arcface", margin=4.0), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_cannot_teach_is_refused(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        train(tiny("distillation", teacher=str(tmp_path / "none")), tmp_path / "run", Silent())
    whole = load_checkpoint(teacher)
    save_checkpoint(replace(whole, test_accuracy=None), tmp_path / "half" / FILE_NAME)
    with pytest.raises(CheckpointError, match=r"loss\.teacher: .*half is not finished"):
        train(tiny("distillation", teacher=str(tmp_path / "half")), tmp_path / "run", Silent())


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    """As many of them, but others."""
    first, last = (
        parse_config({**BASE, "data": {"name": "digits", "left_out": list(out)}}) for out in ("01234", "56789")
    )
    train(last, tmp_path / "teacher", Silent())
    told = with_loss(dump_config(first), "distillation")
    student = parse_config({**told, "loss": {**told["loss"], "teacher": str(tmp_path / "teacher")}})
    with pytest.raises(ConfigurationError, match=r"loss\.teacher: .* knows 5 classes \(0, 1, .*not the data's .5, 6"):
        train(student, tmp_path / "run", Silent())


@pytest.mark.parametrize("loss", ["contrastive", "arcface"])
def test_accuracy_is_of_the_classifier_that_a_batch_met(loss: str, tmp_path: Path) -> None:
    """One batch of random labels: whoever has learned from them already tells some of them."""
    values = with_loss(BASE, loss)
    config = parse_config({**values, "training": {"epochs": 1, "batch_size": 2000}})
    splits = load_splits(config.data)
    labels = torch.randint(10, (len(splits.train),), generator=torch.Generator().manual_seed(0))
    shuffled = replace(splits, train=replace(splits.train, labels=labels))
    [epoch] = train(config, tmp_path, Silent(), splits=shuffled).history
    assert epoch["accuracy"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("loss", ["softmax", "lgm"])
def test_a_last_step_that_diverges_ends_the_run(loss: str, tmp_path: Path) -> None:
    values = {**with_loss(BASE, loss), "optimizer": {"learning_rate": 1e38, "warmup_epochs": 0.0}}
    config = parse_config({**values, "training": {"epochs": 1, "batch_size": 2000}})
    with pytest.raises(DivergenceError, match="no longer finite"):
        train(config, tmp_path, Silent())


def test_a_teacher_may_have_a_loss_of_any_kind(networks: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = train(tiny("distillation", teacher=str(networks["cosface"])), tmp_path, Silent())
    assert checkpoint.test_accuracy is not None
    assert checkpoint.test_accuracy > 0.5


def test_another_loss_keeps_what_it_has_in_common() -> None:
    values = {**BASE, "mixture": {"variance": "unit", "prior": "counts"}, "loss": {"alpha": 0.5, "lambda": 0.02}}
    assert with_loss(values, "lgm") == {**values, "loss": {"name": "lgm", "alpha": 0.5, "lambda": 0.02}}
    assert with_loss(values, "gm")["loss"] == {"name": "gm", "lambda": 0.02}
    softmax = with_loss(values, "softmax")
    assert softmax["name"] == "tiny-softmax"
    assert softmax["loss"] == {"name": "softmax"}
    assert softmax["mixture"] == {"variance": "diagonal", "prior": "counts"}
    assert with_loss({**values, "mixture": {"variance": "isotropic"}}, "softmax")["mixture"] == {
        "variance": "isotropic"
    }
