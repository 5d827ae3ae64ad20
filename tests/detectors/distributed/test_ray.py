"""`lgm screen --engine ray` as a person runs it, with real Rays that are killed."""

import os
import re
import signal
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from detectors import SHIPPED_BUNDLE, Screener
from detectors.bulk import find_files, screen_files
from detectors.distributed import cluster as ray_of
from model.checkpoint import Checkpoint
from model.data import load_splits
from service.cli import app
from tests.detectors.distributed.commands import Command
from tests.ray_cluster import RayCluster

BLOCK = 8
NUM_IMAGES = 240


@pytest.fixture(scope="module")
def images(digits_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    found = load_splits(digits_checkpoint.config.data).test.images
    for index in range(NUM_IMAGES - 1):
        Image.fromarray(found[index, 0].numpy()).save(path / f"{index:03}.png")
    (path / "100-broken.png").write_bytes(b"not an image")
    return path


def screening(bundle: Path, inputs: Path, output: Path, *options: str, environment: dict[str, str]) -> Command:
    arguments = ("screen", bundle, inputs, "--engine", "ray", "--output", output, "--block-size", BLOCK, *options)
    return Command(*arguments, environment=environment)


def num_parts(output: Path) -> int:
    return len(list(output.glob("part-*")))


def test_without_ray_the_extra_is_named(
    digits_bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_of, "find_spec", lambda name: None)
    error = invoke(digits_bundle, images, "--engine", "ray", "--output", tmp_path / "out").stderr
    assert error == "error: this needs ray: pip install 'lgm-guard[scale]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://head:10001", "must be HOST:PORT of the head node"),
        ("head", "must be HOST:PORT of the head node"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    digits_bundle: Path, images: Path, tmp_path: Path, address: str, said: str
) -> None:
    error = invoke(digits_bundle, images, "--engine", "ray", "--output", tmp_path, "--address", address).stderr
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "dask"), "engine: 'dask' is not known"),
        (("--engine", "ray"), "takes paths and --output"),
        (("--engine", "ray", "--output", "out", "--limit", "3"), "neither --data nor --limit"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    digits_bundle: Path, images: Path, arguments: tuple[str, ...], said: str
) -> None:
    error = invoke(digits_bundle, images, *arguments).stderr
    assert said in error


def invoke(bundle: Path, images: Path, *arguments: object):
    return CliRunner().invoke(app, ["screen", str(bundle), str(images), *map(str, arguments)])


@pytest.mark.slow
def test_a_killed_run_goes_on_and_equals_one_process_row_by_row(
    digits_bundle: Path, digits_screener: Screener, images: Path, tmp_path: Path, short_folder: Path
) -> None:
    output = tmp_path / "out"
    cluster = RayCluster(short_folder)
    try:
        options = ("--address", cluster.address)
        killed = screening(digits_bundle, images, output, *options, environment=cluster.environment)
        killed.reaches(lambda: num_parts(output) >= 3)
        os.killpg(killed.process.pid, signal.SIGKILL)
        assert killed.end() == -signal.SIGKILL
        before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
        assert 3 <= len(before) < NUM_IMAGES // BLOCK
        assert not (output / "_summary.json").exists()
        again = screening(digits_bundle, images, output, *options, environment=cluster.environment)
        assert again.end() == 0, again.said
        assert re.search(r"240 images, \d+ flagged, 1 could not be read", again.said), again.said
    finally:
        cluster.kill()
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert len(after) == NUM_IMAGES // BLOCK
    assert after.items() >= before.items()
    rows = parquet.read_table(output).to_pylist()
    expected = [row for chunk in screen_files(digits_screener, find_files([images])) for row in chunk]
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert (row["label"], row["flagged"], row["error"]) == (wanted["label"], wanted["flagged"], wanted["error"])
        assert row["p_value"] == pytest.approx(wanted["p_value"], rel=1e-4) if wanted["p_value"] else True


@pytest.mark.slow
def test_a_lost_head_node_ends_the_run_with_a_word_and_what_is_done_stays(
    digits_bundle: Path, images: Path, tmp_path: Path, short_folder: Path
) -> None:
    output = tmp_path / "out"
    cluster = RayCluster(short_folder)
    options = ("--address", cluster.address)
    run = screening(digits_bundle, images, output, *options, environment=cluster.environment)
    try:
        run.reaches(lambda: num_parts(output) >= 2)
    finally:
        cluster.kill()
    assert run.end() == 2, run.said
    assert f"the head node of the Ray cluster, {cluster.address}, is lost" in run.said
    assert 2 <= num_parts(output) < NUM_IMAGES // BLOCK


@pytest.mark.slow
def test_without_an_address_ray_runs_here_and_ends_with_the_command(images: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    run = screening(SHIPPED_BUNDLE, images, tmp_path / "out", environment=environment)
    assert run.end() == 0, run.said
    errors = {row["error"] for row in parquet.read_table(tmp_path / "out").to_pylist()}
    assert any("this model takes 28 x 28" in error for error in errors)
