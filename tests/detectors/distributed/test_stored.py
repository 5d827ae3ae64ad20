"""An evaluation on images that are read when wanted tells what one on the same images in memory does."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from detectors.distributed.places import StoreError
from detectors.evaluation import benchmark, cli, stored
from detectors.evaluation.benchmark import Evaluation
from detectors.evaluation.inputs import Inputs, load_inputs
from detectors.evaluation.settings import EvaluationError, Settings
from detectors.evaluation.stored import Columns, StoredImages, StoredSet, stored_set
from detectors.evaluation.watcher import Silent
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.errors import DataError
from model.image_set import ImageSet
from model.images import ImageFormat
from tests.commands import alone

NUM_IMAGES = 60
FORMAT = ImageFormat(shape=(1, 8, 8), resize=False)
NAMES = tuple("0123456789")
PLAIN = Columns()


@pytest.fixture
def digits(digits_checkpoint: Checkpoint) -> ImageSet:
    """Sorted by class, as a folder's are."""
    test = load_splits(digits_checkpoint.config.data).test.select(torch.arange(NUM_IMAGES))
    return test.select(test.labels.argsort(stable=True))


@pytest.fixture
def folder(digits: ImageSet, tmp_path: Path) -> Path:
    path = tmp_path / "images"
    for index, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path / str(label) / f"{index:02}.png")
    return path


Write = Callable[..., Path]


@pytest.fixture
def write_parquet(folder: Path, tmp_path: Path) -> Write:
    """The folder's images in row groups of seven."""

    def write(label: Callable[[str], Any] = int) -> Path:
        files = sorted(folder.rglob("*.png"))
        columns = {
            "image": [file.read_bytes() for file in files],
            "label": [label(file.parent.name) for file in files],
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / "digits.parquet", row_group_size=7)
        return tmp_path / "digits.parquet"

    return write


def read(address: object, columns: Columns = PLAIN) -> StoredSet:
    return stored_set(str(address), NAMES, FORMAT, columns)


def assert_same(found: StoredSet, expected: ImageSet) -> None:
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.images[:], expected.images)
    rows = torch.tensor([3, 17, 18, 59, 40])
    assert torch.equal(found.select(rows).images[1:4], expected.images[rows[1:4]])


def test_a_folder_holds_its_images_and_their_classes(folder: Path, digits: ImageSet) -> None:
    assert_same(read(folder), digits)
    assert_same(read(f"file://{folder}"), digits)


@pytest.mark.parametrize("label", [int, str])
def test_so_does_parquet_by_index_or_name(
    write_parquet: Write, digits: ImageSet, label: Callable[[str], Any]
) -> None:
    assert_same(read(write_parquet(label)), digits)


def test_so_does_a_bucket(
    s3: str, bucket: str, folder: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{bucket}/digits"
    fsspec.filesystem("s3").put(str(folder), address, recursive=True)
    found = read(address)
    assert_same(found, digits)
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    try:
        with pytest.raises(StoreError, match=r"s3://.* cannot be reached"):
            read(address)
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_a_row_group_is_read_once_for_batches_that_follow_each_other(
    write_parquet: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, reads = read(write_parquet()), []
    genuine = stored.read_block
    monkeypatch.setattr(stored, "read_block", lambda block, column: reads.append(block) or genuine(block, column))
    for start in range(0, NUM_IMAGES, 2):
        found.images[start : start + 2]
    assert len(reads) == -(-NUM_IMAGES // 7)


def test_only_what_is_wanted_is_read(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    files[5].write_bytes(b"not an image")
    found = read(folder)
    assert found.images[:5].shape == (5, 1, 8, 8)
    with pytest.raises(DataError, match=f"{files[5].name}: .*image"):
        found.images[4:6]


SETTINGS = Settings(data="", attacks=("fgsm",), eps=(0.2,), foreign=("inverted", "noise"), limit=40, batch_size=16)


def evaluate(inputs: Inputs, output: Path) -> list[Any]:
    rows: list[Any] = Evaluation(inputs, output, Silent(), command="").run()["rows"]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_the_figures_are_those_of_images_in_memory(
    digits_bundle: Path, folder: Path, digits: ImageSet, tmp_path: Path
) -> None:
    """But for noise, which each stored image has of its own."""
    inputs = load_inputs(digits_bundle, replace(SETTINGS, data=str(folder)), stored=PLAIN)
    held = {"inverted": 255 - digits.images, "noise": 255 - digits.images}
    found = evaluate(inputs, tmp_path / "found")
    expected = evaluate(replace(inputs, test=digits, foreign=held), tmp_path / "held")
    assert {row["attack"] for row in found} == {"fgsm", "inverted", "noise"}
    for row, wanted in zip(found, expected, strict=True):
        assert row["attack"] == "noise" or row == wanted


def test_noise_is_drawn_by_its_row_and_reads_nothing(folder: Path) -> None:
    images = replace(read(folder).images, look=stored.noise)
    shutil.rmtree(folder)
    assert torch.equal(images[:20][7:9], images[7:9])
    assert images[:].float().mean() == pytest.approx(127.5, rel=0.03)


def test_no_more_is_held_than_a_batch(
    digits_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the network, not even in the checks before any attack, which look at so many images and no more."""
    sizes: list[int] = []
    genuine = StoredImages.__getitem__
    monkeypatch.setattr(
        StoredImages, "__getitem__", lambda *asked: sizes.append(len(found := genuine(*asked))) or found
    )
    monkeypatch.setattr(benchmark, "NUM_CHECKED", 20)
    inputs, judged = load_inputs(digits_bundle, replace(SETTINGS, data=str(folder)), stored=PLAIN), []
    inputs.screener.network.register_forward_pre_hook(lambda network, given: judged.append(len(given[0])))
    evaluate(inputs, tmp_path / "out")
    assert max(sizes) == max(judged) == SETTINGS.batch_size
    assert sum(sizes) == 20 + 4 * 40  # clean, attacked, inverted, noise


def test_another_set_is_not_taken_for_it(folder: Path) -> None:
    before = read(folder).digest()
    assert read(folder).digest() == before
    next(iter(sorted(folder.rglob("*.png")))).unlink()
    assert read(folder).digest() != before


def test_a_folder_of_files_keeps_the_digest_that_earlier_runs_hold(folder: Path, digits: ImageSet) -> None:
    blocks = [(tuple(str(path) for path in sorted(folder.rglob("*.png"))), None)]
    content = repr(blocks).encode() + digits.labels.numpy().tobytes()
    assert read(folder).digest() == hashlib.sha256(content).hexdigest()


def test_another_column_holds_other_images(digits_bundle: Path, write_parquet: Write, tmp_path: Path) -> None:
    """Which neither go on with the first one's figures nor are compared with them as the same images."""
    path = write_parquet()
    table = parquet.read_table(path)
    backwards = table["image"].take(list(range(NUM_IMAGES))[::-1])
    table = table.append_column("backwards", backwards).append_column("again", table["label"])
    parquet.write_table(table, path, row_group_size=7)
    first, second = tmp_path / "first", tmp_path / "second"

    def run(output: Path, *columns: str) -> Result:
        attack = ("--attacks", "fgsm", "--eps", "0.2", "--output", str(output), *columns)
        return CliRunner().invoke(alone(cli.evaluate), [str(digits_bundle), "--images", str(path), *attack])

    assert run(first).exit_code in (0, 3)
    assert "holds another run" in str(run(first, "--image-column", "backwards").exception)
    assert run(first, "--label-column", "again").exit_code in (0, 3)  # the same classes of the same images
    assert run(second, "--image-column", "backwards").exit_code in (0, 3)
    compared = CliRunner().invoke(alone(cli.evaluate), ["--compare", str(first), str(second)])
    assert "measured on different test images" in compared.stdout


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "0").rename(folder / "ten"), "has class 'ten'; the bundle has 0, 1"),
        (
            lambda folder: (folder / "1").rename(folder / ".1") and _file(folder / "a.png"),
            "lies in no class's folder",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message):
        read(folder)


def _file(path: Path) -> None:
    Image.new("L", (8, 8)).save(path)


def test_parquet_that_does_not_fit_is_refused(write_parquet: Write) -> None:
    with pytest.raises(DataError, match="has class 12; the bundle has 0, 1"):
        read(write_parquet(lambda name: 12))
    with pytest.raises(DataError, match="no column 'truth'; --label-column names one of image, label"):
        read(write_parquet(), Columns(label="truth"))
    with pytest.raises(DataError, match="no column 'png'; --image-column names one of image, label"):
        read(write_parquet(), Columns(image="png"))


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"image": [b""], "label": [0]}).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="holds no images"):
        read(tmp_path / "empty.parquet")


def test_the_command(digits_bundle: Path, write_parquet: Write, tmp_path: Path) -> None:
    arguments = [str(digits_bundle), "--images", str(write_parquet()), "--attacks", "fgsm", "--eps", "0.2"]
    result = CliRunner().invoke(alone(cli.evaluate), [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code in (0, 3), result.output  # sixty digits may be too few for the self-checks
    assert (tmp_path / "out" / "report.html").exists()
    both = CliRunner().invoke(
        alone(cli.evaluate), [*arguments, "--data", "digits", "--output", str(tmp_path / "other")]
    )
    assert isinstance(both.exception, EvaluationError)
    assert "--data and --images" in str(both.exception)
