import csv
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from detectors import Screener
from detectors.bulk import CHUNK, check_output, find_files, row_writer, screen_files, screen_set
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.errors import DataError
from model.image_set import ImageSet

COLUMNS = ["image", "label", "class_index", "probability", "log_likelihood", "p_value", "flagged"]


@pytest.fixture(scope="module")
def digit_images(digits_checkpoint: Checkpoint) -> ImageSet:
    return load_splits(digits_checkpoint.config.data).test


@pytest.fixture
def folder(digit_images: ImageSet, tmp_path: Path) -> Path:
    """Twelve good files and three bad ones among them."""
    path = tmp_path / "images"
    (path / "below").mkdir(parents=True)
    for index in range(12):
        Image.fromarray(digit_images.images[index, 0].numpy()).save(path / f"{index:02}.png")
    (path / "03-broken.png").write_bytes(b"not an image")
    (path / "below" / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((9, 7), dtype=np.uint8)).save(path / "below" / "size.png")
    return path


def test_files_are_judged_as_their_pixels_are(
    digits_screener: Screener, digit_images: ImageSet, folder: Path
) -> None:
    rows = [row for chunk in screen_files(digits_screener, sorted(folder.glob("??.png"))) for row in chunk]
    verdicts = digits_screener.screen(digit_images.images[:12].float() / 255)
    for index, row in enumerate(rows):
        assert row["image"] == str(folder / f"{index:02}.png")
        assert row["class_index"] == int(verdicts.class_index[index])
        assert row["label"] == digits_screener.labels[row["class_index"]]
        assert row["probability"] == pytest.approx(float(verdicts.probabilities[index].max()), rel=1e-4)
        assert row["log_likelihood"] == pytest.approx(float(verdicts.log_likelihood[index]), rel=1e-4)
        assert row["p_value"] == pytest.approx(float(verdicts.p_value[index]))
        assert row["flagged"] is bool(verdicts.flagged[index])
        assert row["likelihood_score"] == pytest.approx(-row["log_likelihood"], rel=1e-4)
        assert row["error"] is None


def test_a_bad_file_fails_alone(digits_screener: Screener, folder: Path) -> None:
    rows = [row for chunk in screen_files(digits_screener, find_files([folder])) for row in chunk]
    assert [Path(row["image"]).name for row in rows] == [
        *("00.png", "01.png", "02.png", "03-broken.png", *(f"{index:02}.png" for index in range(3, 12))),
        *("empty.png", "size.png"),
    ]
    errors = {Path(row["image"]).name: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"03-broken.png", "empty.png", "size.png"}
    assert "not an image of an allowed format" in errors["03-broken.png"]
    assert errors["size.png"].endswith("image is 7 x 9 pixels; this model takes 8 x 8 (width x height)")
    assert all(row["label"] is None and row["flagged"] is None for row in rows if row["error"])
    assert all(list(row) == list(rows[0]) for row in rows)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_name_that_is_not_utf_8_is_written_as_escapes(
    digits_screener: Screener, folder: Path, tmp_path: Path, ending: str
) -> None:
    for name in (b"caf\xe9.png", b"bad\xe9.png"):
        (folder / os.fsdecode(name)).write_bytes((folder / "00.png").read_bytes() if name[0] == ord("c") else b"no")
    output = tmp_path / f"rows{ending}"
    with row_writer(output) as write:
        for rows in screen_files(digits_screener, find_files([folder])):
            write(rows)
    assert b"caf\\xe9.png" in output.read_bytes()


def test_more_files_than_a_chunk_keep_their_order(digits_screener: Screener, folder: Path) -> None:
    files = [folder / "00.png", folder / "01.png", folder / "03-broken.png"] * CHUNK
    chunks = list(screen_files(digits_screener, files))
    assert [len(chunk) for chunk in chunks] == [CHUNK] * 3
    assert [row["image"] for chunk in chunks for row in chunk] == [str(path) for path in files]
    first = {row["image"]: row for row in chunks[0]}
    for row in chunks[2]:
        assert row["label"] == first[row["image"]]["label"]
        assert row["p_value"] == first[row["image"]]["p_value"]
        assert (row["error"] is None) == (row["log_likelihood"] is not None)


def test_a_data_set_is_judged_with_its_labels_beside(digits_screener: Screener, digit_images: ImageSet) -> None:
    rows = [row for chunk in screen_set(digits_screener, digit_images) for row in chunk]
    assert [row["image"] for row in rows] == [str(index) for index in range(len(digit_images))]
    right = sum(row["label"] == row["true_label"] for row in rows) / len(rows)
    assert right > 0.95
    verdicts = digits_screener.screen(digit_images.images.float() / 255)
    assert torch.allclose(torch.tensor([row["p_value"] for row in rows]), verdicts.p_value)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_rows_read_back_as_they_were_written(
    digits_screener: Screener, folder: Path, tmp_path: Path, ending: str
) -> None:
    rows = [row for chunk in screen_files(digits_screener, find_files([folder])) for row in chunk]
    output = tmp_path / f"judged{ending}"
    with row_writer(output) as write:
        write(rows[:5])
        write(rows[5:])
    assert not list(tmp_path.glob("*.tmp"))
    if ending == ".parquet":
        assert parquet.read_table(output).to_pylist() == rows
        return
    with output.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(rows[0])
    for row, written in zip(read, rows, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in written.items()}
        if written["p_value"] is not None:
            assert math.isclose(float(row["p_value"]), written["p_value"])


def test_a_parquet_file_has_types_even_where_its_first_chunk_failed(
    digits_screener: Screener, folder: Path, tmp_path: Path
) -> None:
    files = [folder / "03-broken.png", folder / "00.png"]
    rows = [row for chunk in screen_files(digits_screener, files) for row in chunk]
    with row_writer(tmp_path / "judged.parquet") as write:
        write(rows[:1])
        write(rows[1:])
    schema = parquet.read_schema(tmp_path / "judged.parquet")
    assert [str(schema.field(name).type) for name in COLUMNS] == [
        *("string", "string", "int64", "double", "double", "double", "bool"),
    ]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_error_leaves_neither_a_half_file_nor_a_temporary_one(tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"judged{ending}"
    output.write_text("the one before")
    with suppress(ZeroDivisionError), row_writer(output) as write:
        write([{"image": "a", "error": None}])
        raise ZeroDivisionError
    assert output.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [output]


def test_no_output_writes_csv_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with row_writer(None) as write:
        write([{"image": "a", "error": None}])
        write([{"image": "b", "error": "bad"}])
    assert capsys.readouterr().out.splitlines() == ["image,error", "a,", "b,bad"]


def test_a_neighbouring_file_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "judged.csv.tmp").write_text("precious")
    with row_writer(tmp_path / "judged.csv") as write:
        write([{"image": "a", "error": None}])
    assert (tmp_path / "judged.csv.tmp").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/judged.csv", "none is not a folder"),
        ("judged.txt", r"must end in \.csv or \.parquet"),
        ("judged", r"must end in \.csv or \.parquet"),
        ("folder.csv", "is a folder; name a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=said):
        check_output(tmp_path / name)
    with pytest.raises(DataError, match=said), row_writer(tmp_path / name):
        pytest.fail("must not be opened")


def test_files_and_folders_are_found(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image by its name")
    assert len(find_files([folder])) == 15
    assert find_files([folder / "notes.txt", folder / "00.png"]) == [folder / "notes.txt", folder / "00.png"]


def test_a_file_is_found_once_by_whatever_spelling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_files([folder])
    (folder.parent / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert find_files([folder, Path(), folder / ".." / folder.name, folder.parent / "linked", found[0]]) == found
    (folder / "own.png").symlink_to(found[0])
    assert find_files([found[0], folder / "own.png"]) == [found[0], folder / "own.png"]


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist"):
        find_files([tmp_path / "none"])
    with pytest.raises(DataError, match="holds no image files"):
        find_files([tmp_path])
