import io
import os
import pickle
import random
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from model.config import parse_config
from model.errors import CheckpointError
from tests.full_disk import files_of_at_most


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def equal(first: Checkpoint, second: Checkpoint) -> bool:
    return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(Checkpoint))


@pytest.fixture
def path(digits_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(digits_checkpoint, tmp_path / FILE_NAME)
    return tmp_path / FILE_NAME


def test_what_is_saved_is_loaded(digits_checkpoint: Checkpoint, path: Path) -> None:
    assert equal(load_checkpoint(path), digits_checkpoint)
    assert equal(load_checkpoint(path.parent), digits_checkpoint)
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_the_network_comes_back_in_evaluation_mode(digits_checkpoint: Checkpoint) -> None:
    network = digits_checkpoint.build_network()
    assert not network.training
    assert same(dict(network.state_dict()), dict(digits_checkpoint.network))


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: no checkpoint there"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"else\.pt: no checkpoint there"):
        load_checkpoint(tmp_path / "else.pt")


def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(
    digits_checkpoint: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(values: object, file: io.BufferedWriter) -> None:
        file.write(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be written: No space left on device"):
        save_checkpoint(replace(digits_checkpoint, epoch=99), path)
    assert equal(load_checkpoint(path), digits_checkpoint)
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_after_some_of_it_is_told_too(digits_checkpoint: Checkpoint, path: Path) -> None:
    """By the real writer, of a file that may not grow so large: it hides what it was told."""
    said = pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be written: File too large")
    with files_of_at_most(path.stat().st_size // 2), said:
        save_checkpoint(replace(digits_checkpoint, epoch=99), path)
    assert equal(load_checkpoint(path), digits_checkpoint)
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_before_the_renaming_leaves_the_old_checkpoint(
    digits_checkpoint: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(replace(digits_checkpoint, epoch=99), path)
    assert equal(load_checkpoint(path), digits_checkpoint)


def test_left_overs_of_a_crash_are_written_over(digits_checkpoint: Checkpoint, path: Path) -> None:
    (path.parent / (FILE_NAME + ".tmp")).write_bytes(b"half")
    save_checkpoint(replace(digits_checkpoint, epoch=5), path)
    assert load_checkpoint(path).epoch == 5
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_no_changed_byte_changes_what_is_loaded(digits_checkpoint: Checkpoint, path: Path) -> None:
    """Bytes of no meaning (alignment, dates in the zip file) may change; everything else is refused."""
    whole = path.read_bytes()
    draws, refused = random.Random(0), 0
    for _ in range(120):
        changed = bytearray(whole)
        changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(changed)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            refused += str(path) in str(error)
        else:
            assert equal(loaded, digits_checkpoint)
    assert refused > 90


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint of lgm-guard"):
        load_checkpoint(path)


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_nothing_in_a_checkpoint_is_executed(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"format": 1, "config": Malicious(marker)}, path)
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("values", [{}, {"format": 2}, {"format": 1}, [1, 2], torch.zeros(3)], ids=str)
def test_other_contents_are_refused(path: Path, values: object) -> None:
    torch.save(values, path)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_another_format_is_told(path: Path) -> None:
    torch.save({"format": 2}, path)
    with pytest.raises(CheckpointError, match="format 2, but this version reads format 1"):
        load_checkpoint(path)


def test_a_zip_file_of_something_else_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)


def test_a_configuration_that_this_version_does_not_know_is_refused(path: Path) -> None:
    values = torch.load(path, weights_only=True)
    values["config"]["training"]["epochs"] = -1
    torch.save(values, path)
    with pytest.raises(CheckpointError, match=r"training\.epochs"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_the_configuration_are_refused(digits_checkpoint: Checkpoint) -> None:
    values = parse_config({"name": "x", "data": {"name": "digits"}, "network": {"backbone": "small28", "width": 9}})
    with pytest.raises(CheckpointError, match="weights do not fit"):
        replace(digits_checkpoint, config=values).build_network()
