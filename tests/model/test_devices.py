"""Training by several real processes over gloo, against one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.config import load_config
from model.devices import Devices, join
from model.errors import ConfigurationError
from model.part import Part
from model.train import train
from model.training_log import Silent

# A rate so small that rounding is not amplified; 1,213 images leave 61 in the last batch, which four do not divide.
TOML = """
name = "several"
[data]
name = "digits"
[network]
backbone = "small28"
width = 4
num_features = 8
[mixture]
variance = "diagonal"
prior = "learned"
[loss]
alpha = { policy = "linear", start = 0.0, stop = 0.5, epochs = 2 }
[augmentation]
pad = 1
rotation = 5.0
erase = 3
mirror = true
[adversarial]
eps = 0.05
steps = 1
clean_share = 0.3
[optimizer]
learning_rate = 0.002
clip_gradient_norm = 1.0
[training]
epochs = 2
batch_size = 64
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "several.toml"
    path.write_text(TOML)
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def command(toml: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "model", "train", str(toml), "--output", str(output), *options]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=600)


def alone(toml: Path, output: Path, *overrides: str) -> Checkpoint:
    return train(load_config(toml, overrides), output, Silent())


def assert_same_curve(several: Checkpoint, one: Checkpoint) -> None:
    for theirs, ours in zip(several.history, one.history, strict=True):
        for name in ("loss", "classification", "likelihood"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name
        assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=0.005)
        assert [theirs[name] for name in ("alpha", "lambda_", "learning_rate")] == [
            ours[name] for name in ("alpha", "lambda_", "learning_rate")
        ]
    assert several.loss_step == one.loss_step
    for name, values in one.network.items():
        torch.testing.assert_close(several.network[name], values, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_follow_the_curve_of_one(size: int, toml: Path, tmp_path: Path) -> None:
    ended = run(*command(toml, tmp_path / "several", "--devices", str(size)))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("test accuracy") == 1
    several = load_checkpoint(tmp_path / "several")
    assert several.finished
    assert_same_curve(several, alone(toml, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["triplet", "arcface", "noisy-softmax"])
def test_losses_that_compare_images_or_draw_see_the_whole_batch(loss: str, toml: Path, tmp_path: Path) -> None:
    overrides = ["adversarial.eps=0.0", "loss.alpha=0.1", "training.epochs=1"]
    options = [word for override in overrides[::2] for word in ("--set", override)]
    ended = run(*command(toml, tmp_path / "several", "--devices", "2", "--loss", loss, *options))
    assert ended.returncode == 0, ended.stderr
    config = load_config(toml, overrides[::2], loss=loss)
    one = train(config, tmp_path / "one", Silent())
    for theirs, ours in zip(load_checkpoint(tmp_path / "several").history, one.history, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)


def ranks_of(launcher: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(launcher.pid).children() if "train" in child.cmdline()]


def kill_one_after_the_first_epoch(launcher: "subprocess.Popen[str]", output: Path) -> None:
    while not (output / "checkpoint.pt").exists():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.05)
    [killed] = [rank for rank in ranks_of(launcher) if rank.environ()["RANK"] == "1"]
    os.kill(killed.pid, signal.SIGKILL)


LONG = ("--set", "training.epochs=6")


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_word_and_a_checkpoint_that_goes_on(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(toml, output, "--devices", "2", *LONG)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
        kill_one_after_the_first_epoch(launcher, output)
        assert launcher.stderr is not None
        told = launcher.stderr.read()
    assert launcher.returncode == 2
    said = re.search(r"error: rank 1 of 2 was ended by SIGKILL; .*checkpoint.pt holds (\d+) of 6 epochs", told)
    assert said is not None, told
    assert load_checkpoint(output).epoch == int(said[1]) < 6
    goes_on = run(*command(toml, output, "--devices", "2", *LONG))
    assert goes_on.returncode == 0, goes_on.stderr
    finished = load_checkpoint(output)
    assert finished.finished
    assert [row["epoch"] for row in finished.history] == list(range(1, 7))


@pytest.mark.slow
def test_restarts_go_on_from_the_last_checkpoint(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(toml, output, "--devices", "2", "--restarts", "1", *LONG)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
        kill_one_after_the_first_epoch(launcher, output)
        assert launcher.stderr is not None
        told = launcher.stderr.read()
    assert launcher.returncode == 0, told
    unbroken = run(*command(toml, tmp_path / "unbroken", "--devices", "2", *LONG))
    assert unbroken.returncode == 0, unbroken.stderr
    found, expected = load_checkpoint(output), load_checkpoint(tmp_path / "unbroken")
    assert [row | {"seconds": 0} for row in found.history] == [row | {"seconds": 0} for row in expected.history]
    for name, values in expected.network.items():
        assert torch.equal(found.network[name], values), name


@pytest.mark.slow
def test_torchrun_starts_the_same_processes(toml: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = run(*torchrun, *command(toml, tmp_path / "run", "--set", "training.epochs=1")[1:])
    assert ended.returncode == 0, ended.stderr
    assert load_checkpoint(tmp_path / "run").finished


RANK = """
import json, os, sys
from pathlib import Path
from model.config import load_config
from model.devices import join
from model.errors import LGMGuardError
from model.train import train
from model.training_log import Silent

rank = int(os.environ["RANK"])
path, output, overrides, directories = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
os.environ["LGM_DATA_DIR"] = directories[rank]
with join("cpu") as devices:
    try:
        train(load_config(path, overrides[rank]), output, Silent(), devices=devices)
    except LGMGuardError as error:
        print(rank, error)
"""


def disagreement(toml: Path, output: Path, overrides: list[list[str]], directories: list[str]) -> list[str]:
    """What each of two ranks says that are started with other settings or other images."""
    script = toml.with_name("rank.py")
    script.write_text(RANK)
    arguments: list[Any] = [script, toml, output, json.dumps(overrides), json.dumps(directories)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = run(*launcher, *map(str, arguments))
    assert told.returncode == 0, told.stderr
    assert not output.exists()
    return sorted(told.stdout.splitlines())


def test_ranks_with_other_configurations_are_told_apart(toml: Path, tmp_path: Path) -> None:
    overrides = [[], ["training.seed=7"]]
    said = "the processes disagree: training.seed is 0 on rank 0, but 7 on rank 1"
    assert disagreement(toml, tmp_path / "run", overrides, ["", ""]) == [f"0 {said}", f"1 {said}"]


@pytest.mark.slow
def test_ranks_with_other_images_are_told_apart(toml: Path, tmp_path: Path) -> None:
    from PIL import Image

    for number, folder in enumerate(("here", "there")):
        for name, shade in (("cat", 10), ("dog", 200 + number)):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(12):
                Image.new("L", (8, 8), shade + index).save(tmp_path / folder / name / f"{index}.png")
    overrides = [["data.name=image-folder", "data.calibration_fraction=0.25"]] * 2
    directories = [str(tmp_path / folder) for folder in ("here", "there")]
    told = disagreement(toml, tmp_path / "run", overrides, directories)
    assert len(told) == 2
    for line in told:
        assert re.search(r"the digest of the train images is \"\w{64}\" on rank 0, but \"\w{64}\" on rank 1", line)


def test_one_process_is_alone() -> None:
    with join("cpu") as devices:
        assert devices.alone
        assert devices.part(5) == Part.whole(5)
        devices.agree({"anything": 1})


@pytest.mark.parametrize(("total", "size"), [(64, 4), (61, 4), (3, 4), (2, 2), (0, 3)])
def test_parts_are_the_whole_batch_in_order(total: int, size: int) -> None:
    parts = [Devices(rank=rank, size=size).part(total) for rank in range(size)]
    assert [row for part in parts for row in range(part.first, part.last)] == list(range(total))
    sizes = [part.last - part.first for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_part_meets_the_chance_of_the_whole_batch() -> None:
    def drawn(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return part.rand(3, generator=generator), part.randint(9, 2, generator=generator)

    whole, parts = drawn(Part.whole(10)), [drawn(Part.of(10, rank=rank, size=3)) for rank in range(3)]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts], -1), whole[index])


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "99"), ("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "98")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"a process of number 98, but \d+ CUDA devices"), join("cuda"):
        pass


def test_a_numbered_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"training\.device is 'cuda:1', but each of 2"), join("cuda:1"):
        pass
