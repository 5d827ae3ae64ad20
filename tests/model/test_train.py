import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from model.data import Splits, load_splits
from model.epoch import accuracy
from model.errors import CheckpointError, ConfigurationError
from model.folder_lock import alone_in
from model.image_set import ImageSet, to_unit
from model.images import ImageFormat
from model.train import check_fit, select_device, train
from model.training_log import RunLog, Silent
from tests.model.small_runs import assert_same_weights, tiny, write_images

RAMP = {"policy": "linear", "start": 0.0, "stop": 0.5, "epochs": 2}

CHILD = """
import sys, tomllib
from pathlib import Path
import torch
from model.config import load_config
from model.train import train
from model.training_log import RunLog

class Told(RunLog):
    def step(self, epoch, step, report):
        super().step(epoch, step, report)
        print(f"at {epoch} {step}", file=sys.stderr, flush=True)

torch.set_num_threads(int(sys.argv[3]))
with Told(Path(sys.argv[2])) as log:
    train(load_config(Path(sys.argv[1]), sys.argv[4:]), Path(sys.argv[2]), log)
"""

KILLED = (
    "mixture.variance=diagonal",
    "mixture.prior=learned",
    "loss.alpha={policy = 'linear', start = 0.0, stop = 0.5, epochs = 2}",
    "loss.lambda={policy = 'add-up', start = 0.0, gamma = 0.01, every = 7, maximum = 0.1}",
    "augmentation={rotation = 5.0, translation = 0.1, pad = 1}",
    "training.epochs=3",
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def unfinished(checkpoint: Checkpoint, epoch: int = 1) -> Checkpoint:
    return replace(checkpoint, epoch=epoch, history=checkpoint.history[:epoch], test_accuracy=None)


def test_digits_are_learned(digits_checkpoint: Checkpoint) -> None:
    assert digits_checkpoint.finished
    assert digits_checkpoint.test_accuracy is not None
    assert digits_checkpoint.test_accuracy > 0.95
    assert digits_checkpoint.history[-1]["held_out_accuracy"] > 0.95
    losses = [row["classification"] for row in digits_checkpoint.history]
    assert losses[-1] < 0.2 * losses[0]


def test_the_accuracy_told_is_that_of_the_saved_network(digits_checkpoint: Checkpoint) -> None:
    test = load_splits(digits_checkpoint.config.data).test
    network = digits_checkpoint.build_network()
    with torch.no_grad():
        predicted = network(to_unit(test.images)).log_joint.argmax(1)
    assert digits_checkpoint.test_accuracy == int((predicted == test.labels).sum()) / len(test)
    assert accuracy(network, test) == digits_checkpoint.test_accuracy


def test_measuring_does_not_train(digits_checkpoint: Checkpoint) -> None:
    """Batch statistics of the images measured on must neither be used nor remembered."""
    network = digits_checkpoint.build_network().train()
    accuracy(network, load_splits(digits_checkpoint.config.data).test)
    assert not network.training
    for name, values in network.state_dict().items():
        assert torch.equal(values, digits_checkpoint.network[name]), name


def test_a_checkpoint_knows_what_was_trained_on(digits_checkpoint: Checkpoint) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    assert torch.equal(digits_checkpoint.trained_images, splits.train.fingerprints())
    assert digits_checkpoint.split_digests == {
        "train": splits.train.digest(),
        "calibration": splits.calibration.digest(),
        "test": splits.test.digest(),
    }
    assert digits_checkpoint.command == "lgm train digits.toml"


def test_the_normalisation_is_that_of_the_training_images(digits_checkpoint: Checkpoint) -> None:
    images = to_unit(load_splits(digits_checkpoint.config.data).train.images)
    assert digits_checkpoint.network["normalise.mean"].flatten() == pytest.approx(images.mean((0, 2, 3)))
    assert digits_checkpoint.network["normalise.std"].flatten() == pytest.approx(images.std((0, 2, 3)), rel=1e-4)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    config = tiny(augmentation={"pad": 1, "rotation": 10.0})
    first = train(config, tmp_path / "first", Silent())
    torch.manual_seed(999)  # what the process drew before must not matter
    second = train(config, tmp_path / "second", Silent())
    assert_same_weights(first, second)
    assert [row | {"seconds": 0} for row in first.history] == [row | {"seconds": 0} for row in second.history]


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first, second = (train(tiny(training={"seed": seed}), tmp_path / str(seed), Silent()) for seed in (0, 1))
    assert not torch.equal(first.network["mixture.means"], second.network["mixture.means"])
    assert first.history[0]["loss"] != second.history[0]["loss"]


def test_a_killed_run_resumes_to_the_same_end_bit_for_bit(toml: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [sys.executable, "-c", CHILD, str(toml), str(killed), str(torch.get_num_threads()), *KILLED]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if line == "at 1 5\n":
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stderr.read()
    assert process.returncode == -signal.SIGKILL, "".join(told)
    assert load_checkpoint(killed).epoch == 1
    config = load_checkpoint(killed).config
    ends = []
    for folder in (killed, whole):
        with RunLog(folder) as log:
            ends.append(train(config, folder, log))
    assert_same_weights(*ends)
    assert ends[0].loss_step == ends[1].loss_step
    assert ends[0].test_accuracy == ends[1].test_accuracy
    resumed, uninterrupted = ([row | {"seconds": ""} for row in rows(folder)] for folder in (killed, whole))
    assert len(resumed) == 3
    assert resumed == uninterrupted


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tiny(), tmp_path, Silent())
    written = (tmp_path / FILE_NAME).stat().st_mtime_ns
    again = train(tiny(), tmp_path, Silent())
    assert (tmp_path / FILE_NAME).stat().st_mtime_ns == written
    assert_same_weights(first, again)


def test_a_folder_with_another_run_is_refused(digits_run: Path) -> None:
    before = (digits_run / FILE_NAME).read_bytes()
    with pytest.raises(CheckpointError, match=r"another configuration \(.* is .*, there .*\); choose another"):
        train(tiny(), digits_run, Silent())
    assert (digits_run / FILE_NAME).read_bytes() == before


def test_two_runs_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(ConfigurationError, match="another process is at work in this folder"):
        train(tiny(), tmp_path, Silent())
    assert not (tmp_path / FILE_NAME).exists()
    assert train(tiny(), tmp_path, Silent()).finished


def test_a_damaged_checkpoint_is_not_trained_over(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tiny(), tmp_path, Silent())
    assert (tmp_path / FILE_NAME).read_bytes() == b"damaged"


def test_a_run_is_not_resumed_on_other_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", cat=12, dog=12)
    config = tiny(data={"name": "image-folder", "directory": str(images), "calibration_fraction": 0.25})
    finished = train(config, tmp_path / "run", Silent())
    save_checkpoint(unfinished(finished), tmp_path / "run" / FILE_NAME)
    Image.new("L", (8, 8), 7).save(images / "cat" / "0.png")
    with pytest.raises(CheckpointError, match=r"was trained on other (train|calibration|test) images"):
        train(config, tmp_path / "run", Silent())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    config = tiny(optimizer={"learning_rate": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(ConfigurationError, match=r"no longer finite in epoch 1: lower optimizer\.learning_rate"):
        train(config, tmp_path / "run", Silent())
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"mixture": {"variance": "isotropic"}},
        {"mixture": {"variance": "diagonal"}},
        {"mixture": {"prior": "learned", "variance": "diagonal"}},
        {"mixture": {"prior": "counts"}},
        {"mixture": {"means_from_data": True}},
        {"mixture": {"num_classes": 10}},
        {"loss": {"block_size": 3}},
        {"optimizer": {"name": "adamw", "learning_rate": 0.01}},
        {"optimizer": {"schedule": "steps", "milestones": [1], "warmup_epochs": 0.0}},
        {"optimizer": {"clip_gradient_norm": 1.0}},
        {"training": {"precision": "bfloat16"}},
        {"training": {"channels_last": False}},
        {"network": {"backbone": "small32"}},
        {"network": {"backbone": "resnet20"}},
        {"augmentation": {"pad": 1, "rotation": 5.0, "translation": 0.05, "scale": 0.1, "shear": 5.0}},
    ],
    ids=str,
)
def test_every_option_learns(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = train(tiny(**changes), tmp_path, Silent())
    first, last = checkpoint.history[0], checkpoint.history[-1]
    assert last["classification"] < first["classification"]
    assert checkpoint.test_accuracy is not None
    assert checkpoint.test_accuracy > 0.25  # a tenth by chance
    assert all(bool(values.isfinite().all()) for values in checkpoint.network.values())


def test_means_from_data_start_at_the_features(tmp_path: Path) -> None:
    """With almost no learning rate the means stay where they were set: near what the network gives."""
    config = tiny(
        mixture={"means_from_data": True}, optimizer={"learning_rate": 1e-12}, training={"epochs": 1}, data={}
    )
    checkpoint = train(config, tmp_path, Silent())
    splits = load_splits(config.data)
    network = checkpoint.build_network().train()
    with torch.no_grad():
        features = network.embed(to_unit(splits.train.images))
    for index in range(10):
        mean = features[splits.train.labels == index].mean(0)
        assert torch.allclose(checkpoint.network["mixture.means"][index], mean, atol=0.05)


def test_means_from_data_take_a_set_that_leaves_one_image_over(tmp_path: Path) -> None:
    """513 images in chunks of 512 would leave one, of which batch normalisation has no variance."""
    write_images(tmp_path / "data" / "train", cat=300, dog=384)
    write_images(tmp_path / "data" / "test", cat=8, dog=8)
    config = tiny(
        data={"name": "image-folder", "directory": str(tmp_path / "data"), "calibration_fraction": 0.25},
        network={"backbone": "small32"},
        mixture={"means_from_data": True},
        training={"epochs": 1},
    )
    assert len(load_splits(config.data).train) == 513
    assert train(config, tmp_path / "run", Silent()).finished


def test_schedules_reach_their_values_and_stay(tmp_path: Path) -> None:
    stepped = {"policy": "step-up", "start": 0.01, "gamma": 2.0, "every": 20, "maximum": 0.03}
    checkpoint = train(tiny(loss={"alpha": RAMP, "lambda": stepped}, training={"epochs": 4}), tmp_path, Silent())
    steps = math.ceil(len(load_splits(checkpoint.config.data).train) / 64)
    assert steps == 19
    assert checkpoint.loss_step == 4 * steps
    alphas = [row["alpha"] for row in checkpoint.history]
    assert alphas == pytest.approx([0.5 * 18 / 38, 0.5 * 37 / 38, 0.5, 0.5])
    lambdas = [row["lambda_"] for row in checkpoint.history]
    assert lambdas == pytest.approx([0.01, 0.02, 0.03, 0.03])
    assert [row["epoch"] for row in checkpoint.history] == [1, 2, 3, 4]


def test_the_loss_told_is_the_sum_of_its_terms(digits_checkpoint: Checkpoint) -> None:
    for row in digits_checkpoint.history:
        assert row["loss"] == pytest.approx(row["classification"] + row["lambda_"] * row["likelihood"], rel=1e-4)


def test_the_learning_rate_of_each_epoch_is_told(tmp_path: Path) -> None:
    config = tiny(optimizer={"schedule": "steps", "milestones": [1], "warmup_epochs": 0.0, "learning_rate": 0.05})
    rates = [row["learning_rate"] for row in train(config, tmp_path, Silent()).history]
    assert rates == pytest.approx([0.05, 0.005])


@pytest.mark.parametrize(
    ("name", "said"), [("toaster", "not known"), ("meta", "cannot be used"), ("cuda:77", "not there")]
)
def test_a_device_that_does_not_exist_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        select_device(name)


def test_the_cpu_is_a_device() -> None:
    assert select_device("cpu") == torch.device("cpu")


def test_one_training_image_is_too_few() -> None:
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    one = ImageSet(images=images, labels=torch.zeros(1, dtype=torch.int64), class_names=("a",))
    splits = Splits(train=one, calibration=one, test=one, image_format=ImageFormat(shape=(1, 8, 8)))
    with pytest.raises(ConfigurationError, match="leaves 1 training images; 2 are needed"):
        check_fit(tiny(), splits)
