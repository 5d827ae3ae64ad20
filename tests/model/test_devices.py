"""Training by several real processes over gloo, against one process."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.config import load_config
from model.devices import Devices, join
from model.errors import ConfigurationError, LGMGuardError
from model.part import Part
from model.train import train
from model.training_log import Silent
from tests.model.ranks import on_ranks
from tests.model.small_runs import TOML, write_images
from tests.processes import assert_gone

# A rate so small that rounding is not amplified; 270 images leave 14 in the last batch, which four do not divide.
SEVERAL = (
    "data.num_images=300",
    "mixture.variance=diagonal",
    "mixture.prior=learned",
    "loss.alpha={policy = 'linear', start = 0.0, stop = 0.5, epochs = 2}",
    "augmentation={pad = 1, rotation = 5.0, erase = 3, mirror = true}",
    "optimizer={learning_rate = 0.002, clip_gradient_norm = 1.0}",
)
ATTACKED = (*SEVERAL, "adversarial={eps = 0.05, steps = 1, clean_share = 0.3}")


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def command(toml: Path, output: Path, overrides: Sequence[str], *options: str) -> list[str]:
    settings = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "model", "train", str(toml), "--output", str(output), *settings, *options]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=600)


def train_on(devices: Devices, toml: Path, output: Path, overrides: Sequence[Sequence[str]]) -> str:
    """What a rank says whose settings are the overrides of its number, or the only ones."""
    own = overrides[devices.rank % len(overrides)]
    try:
        train(load_config(toml, own), output, Silent(), devices=devices)
    except LGMGuardError as error:
        return str(error)
    return "trained"


def train_on_images(devices: Devices, toml: Path, output: Path, folders: Sequence[Path]) -> str:
    os.environ["LGM_DATA_DIR"] = str(folders[devices.rank])
    overrides = ["data={name = 'image-folder', calibration_fraction = 0.25}"]
    return train_on(devices, toml, output, [overrides])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """What a process alone makes of it."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.toml").write_text(TOML)
    return train(load_config(folder / "tiny.toml", ATTACKED), folder / "run", Silent())


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


def test_the_command_starts_processes_that_follow_the_curve_of_one(
    toml: Path, tmp_path: Path, one: Checkpoint
) -> None:
    arguments = command(toml, tmp_path / "several", ATTACKED, "--devices", "2")
    ended = run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("test accuracy") == 1
    several = load_checkpoint(tmp_path / "several")
    assert several.finished
    assert several.command == shlex.join(["lgm", *arguments[3:]])
    assert_same_curve(several, one)


def test_the_error_of_a_rank_is_one_line_and_leaves_nothing(
    toml: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    several, alone = (run(*command(toml, digits_run, (), *options)) for options in (["--devices", "2"], []))
    assert [path.name for path in tmp_path.iterdir() if path != toml] == []
    assert alone.stderr.startswith(f"error: {digits_run} holds a run with another configuration (")
    assert (several.returncode, alone.returncode) == (2, 2)
    assert several.stderr == alone.stderr


@pytest.mark.slow
def test_four_processes_follow_the_curve_of_one(toml: Path, tmp_path: Path, one: Checkpoint) -> None:
    assert on_ranks(4, train_on, toml, tmp_path / "several", [ATTACKED]) == ["trained"] * 4
    assert_same_curve(load_checkpoint(tmp_path / "several"), one)


@pytest.mark.parametrize("loss", ["triplet", "arcface", "noisy-softmax"])
def test_losses_that_compare_images_or_draw_see_the_whole_batch(loss: str, toml: Path, tmp_path: Path) -> None:
    rival = [*SEVERAL, f"loss={{name = '{loss}'}}", "training.epochs=1"]
    assert on_ranks(2, train_on, toml, tmp_path / "several", [rival]) == ["trained"] * 2
    one = train(load_config(toml, rival), tmp_path / "one", Silent())
    [theirs], [ours] = load_checkpoint(tmp_path / "several").history, one.history
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)


def ranks_of(launcher: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(launcher.pid).children() if "train" in child.cmdline()]


def wait_for_the_first_epoch(launcher: "subprocess.Popen[str]", output: Path) -> None:
    while not (output / "checkpoint.pt").exists():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.05)


def kill_one_after_the_first_epoch(launcher: "subprocess.Popen[str]", output: Path) -> None:
    wait_for_the_first_epoch(launcher, output)
    [killed] = [rank for rank in ranks_of(launcher) if rank.environ()["RANK"] == "1"]
    os.kill(killed.pid, signal.SIGKILL)


LONG = (*ATTACKED[1:], "training.epochs=6")  # of all images


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_ranks_end_with_their_launcher(number: signal.Signals, toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(toml, output, ["training.epochs=1000"], "--devices", "2")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
        wait_for_the_first_epoch(launcher, output)
        ranks = ranks_of(launcher)
        launcher.send_signal(number)
        launcher.wait()
        assert len(ranks) == 2
        assert_gone(ranks)
        assert launcher.stderr is not None
        told = launcher.stderr.read()
    if number == signal.SIGKILL:
        assert (launcher.returncode, told) == (-signal.SIGKILL, "")
        return
    assert launcher.returncode == 128 + number
    held = load_checkpoint(output).epoch
    holds = f"{output / 'checkpoint.pt'} holds {held} of 1000 epochs; the same command goes on from there"
    assert told == f"ended by {number.name}; {holds}\n"


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_word_and_a_checkpoint_that_goes_on(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(toml, output, LONG, "--devices", "2")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
        kill_one_after_the_first_epoch(launcher, output)
        assert launcher.stderr is not None
        told = launcher.stderr.read()
    assert launcher.returncode == 2
    said = re.search(r"error: rank 1 of 2 was ended by SIGKILL; .*checkpoint.pt holds (\d+) of 6 epochs", told)
    assert said is not None, told
    assert load_checkpoint(output).epoch == int(said[1]) < 6
    goes_on = run(*command(toml, output, LONG, "--devices", "2"))
    assert goes_on.returncode == 0, goes_on.stderr
    finished = load_checkpoint(output)
    assert finished.finished
    assert [row["epoch"] for row in finished.history] == list(range(1, 7))


@pytest.mark.slow
def test_restarts_go_on_from_the_last_checkpoint(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(toml, output, LONG, "--devices", "2", "--restarts", "1")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
        kill_one_after_the_first_epoch(launcher, output)
        assert launcher.stderr is not None
        told = launcher.stderr.read()
    assert launcher.returncode == 0, told
    unbroken = run(*command(toml, tmp_path / "unbroken", LONG, "--devices", "2"))
    assert unbroken.returncode == 0, unbroken.stderr
    found, expected = load_checkpoint(output), load_checkpoint(tmp_path / "unbroken")
    assert [row | {"seconds": 0} for row in found.history] == [row | {"seconds": 0} for row in expected.history]
    for name, values in expected.network.items():
        assert torch.equal(found.network[name], values), name


@pytest.mark.slow
def test_torchrun_starts_the_same_processes(toml: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = run(*torchrun, *command(toml, tmp_path / "run", ["training.epochs=1"])[1:])
    assert ended.returncode == 0, ended.stderr
    assert load_checkpoint(tmp_path / "run").finished


def test_ranks_with_other_configurations_are_told_apart(toml: Path, tmp_path: Path) -> None:
    said = "the processes disagree: training.seed is 0 on rank 0, but 7 on rank 1"
    assert on_ranks(2, train_on, toml, tmp_path / "run", [[], ["training.seed=7"]]) == [said, said]
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_images_are_told_apart(toml: Path, tmp_path: Path) -> None:
    folders = [write_images(tmp_path / str(seed), seed=seed, cat=12, dog=12) for seed in (0, 1)]
    told = on_ranks(2, train_on_images, toml, tmp_path / "run", folders)
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
