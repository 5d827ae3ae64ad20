"""A mixture whose classes are spread over processes while it is trained, against one that is whole."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.config import load_config
from model.data import load_splits
from model.devices import Devices
from model.epoch import accuracy
from model.errors import ConfigurationError
from model.learners import build_learners
from model.train import train
from model.training_log import Report, Silent
from tests.model.ranks import on_ranks
from tests.model.small_runs import assert_same_weights, tiny
from tests.model.test_devices import SEVERAL, assert_same_curve

SHARDED = "mixture.sharded=true"
RESUMED = (
    "data.num_images=300",
    "mixture={variance = 'isotropic', prior = 'counts', means_from_data = true, sharded = true}",
    "optimizer={name = 'adamw', learning_rate = 0.01}",
)


def train_sharded(devices: Devices, toml: Path, output: Path, overrides: Sequence[str]) -> dict[str, torch.Size]:
    """The shapes of what a rank holds of the mixture, and of its momenta, after training."""
    train(load_config(toml, overrides), output, Silent(), devices=devices)
    checkpoint = load_checkpoint(output)
    learners = build_learners(
        checkpoint, load_splits(checkpoint.config.data), device=torch.device("cpu"), devices=devices
    )
    mixture = learners.network.mixture
    momenta = learners.optimizer.state[mixture.means]["momentum_buffer"]
    return {name: values.shape for name, values in mixture.named_parameters()} | {"momenta": momenta.shape}


def test_a_sharded_mixture_follows_the_curve_of_one_that_is_whole(toml: Path, tmp_path: Path) -> None:
    shapes = on_ranks(2, train_sharded, toml, tmp_path / "sharded", [*SEVERAL, SHARDED])
    rows = {"means": (5, 8), "raw_log_variances": (5, 8), "raw_log_priors": (5,), "momenta": (5, 8)}
    assert shapes == [rows, rows]
    one = train(load_config(toml, SEVERAL), tmp_path / "one", Silent())
    sharded = load_checkpoint(tmp_path / "sharded")
    assert_same_curve(sharded, one)
    assert_same_momenta(sharded, one)
    assert sharded.test_accuracy == accuracy(sharded.build_network(), load_splits(sharded.config.data).test)


def assert_same_momenta(sharded: Checkpoint, one: Checkpoint) -> None:
    for index, values in one.optimizer["state"].items():
        theirs = sharded.optimizer["state"][index]["momentum_buffer"]
        torch.testing.assert_close(theirs, values["momentum_buffer"], rtol=1e-2, atol=1e-3)


class StoppedError(Exception):
    pass


class Stop(Silent):
    """The end of a run in the midst of its second epoch."""

    def step(self, epoch: int, step: int, report: Report) -> None:
        if (epoch, step) == (1, 1):
            raise StoppedError


def stop_and_resume(devices: Devices, toml: Path, folder: Path) -> None:
    config = load_config(toml, RESUMED)
    train(config, folder / "whole", Silent(), devices=devices)
    with pytest.raises(StoppedError):
        train(config, folder / "stopped", Stop(), devices=devices)
    if devices.rank == 0:
        shutil.copytree(folder / "stopped", folder / "by three")
    train(config, folder / "stopped", Silent(), devices=devices)


def go_on(devices: Devices, toml: Path, folder: Path) -> None:
    train(load_config(toml, RESUMED), folder, Silent(), devices=devices)


def test_a_sharded_run_goes_on_bit_for_bit_and_by_another_number_of_processes(toml: Path, tmp_path: Path) -> None:
    on_ranks(2, stop_and_resume, toml, tmp_path)
    whole, resumed = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "stopped")
    assert_same_weights(resumed, whole)
    assert [row | {"seconds": 0} for row in resumed.history] == [row | {"seconds": 0} for row in whole.history]
    assert load_checkpoint(tmp_path / "by three").epoch == 1
    on_ranks(3, go_on, toml, tmp_path / "by three")
    assert load_checkpoint(tmp_path / "by three").history[-1]["loss"] == pytest.approx(
        whole.history[-1]["loss"], rel=1e-4
    )


def test_one_process_cannot_shard(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mixture\.sharded needs several processes: lgm train --devices N"):
        train(tiny(mixture={"sharded": True}), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"name": "arcface"}}, r"mixture\.sharded: arcface has Gaussians only after training; use one of"),
        ({"adversarial": {"eps": 0.1}}, r"mixture\.sharded: .* adversarial\.eps must be 0, got 0\.1"),
    ],
    ids=str,
)
def test_what_needs_the_whole_mixture_is_refused(changes: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        tiny(mixture={"sharded": True}, **changes)
