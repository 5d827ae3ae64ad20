"""Blocks judged one by one in this process: what Ray does is to choose which, and where."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet as parquet
import pytest

from detectors import Screener
from detectors.bulk import Counts, Row, find_files, screen_files
from detectors.distributed import versions
from detectors.distributed.judging import BlockScreener, Job
from detectors.distributed.ledger import Ledger, Plan
from detectors.distributed.places import StoreError, open_place, write_whole
from detectors.distributed.screening import RayOptions, screen_with_ray
from detectors.distributed.sources import find_blocks
from detectors.manifest import load_manifest
from model.errors import BundleError, DataError
from tests.bundles import with_other_card


class Run:
    """A run as the Ray engine begins it, and blocks judged in any order."""

    def __init__(self, bundle: Path, inputs: Sequence[str], output: str, *, block_size: int = 5):
        manifest = load_manifest(bundle)
        self.ledger = Ledger(output)
        plan = Plan(
            bundle=manifest.name,
            version=manifest.version,
            inputs=tuple(inputs),
            block_size=block_size,
            image_column="image",
        )
        blocks = find_blocks(inputs, block_size=block_size, image_column="image")
        self.num_blocks = self.ledger.begin(plan, blocks)
        self._job = Job(bundle=bundle, version=manifest.version, device="cpu", output=output, image_column="image")

    def judge(self, *numbers: int) -> Counts:
        screener = BlockScreener(self._job)
        return sum((screener.judge(number) for number in numbers), Counts())

    def judge_all(self) -> Counts:
        return self.judge(*sorted(set(range(self.num_blocks)) - self.ledger.finished()))


def rows_of(output: str) -> list[Row]:
    files, root = open_place(output)
    rows: list[Row] = []
    for path in sorted(files.glob(f"{root}/part-*.parquet")):
        with files.open(path) as stream:
            rows += parquet.read_table(stream).to_pylist()
    return rows


def assert_same(found: list[Row], expected: list[Row], renamed: tuple[str, str] = ("", "")) -> None:
    """Row by row; scores to what another size of batch may change in the order of summation."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert list(row) == list(wanted)
        for name, value in wanted.items():
            if isinstance(value, str):
                assert row[name] == value.replace(*renamed)
            elif value is None:
                assert row[name] is None
            else:
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (wanted["image"], name)


def names_of(rows: Sequence[Row]) -> list[str]:
    return [row["image"] for row in rows]


def expected_rows(screener: Screener, folder: Path) -> list[Row]:
    return [row for chunk in screen_files(screener, find_files([folder])) for row in chunk]


def test_an_interrupted_run_goes_on_and_has_each_input_once(
    digits_bundle: Path, digits_screener: Screener, folder: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    first = Run(digits_bundle, [str(folder)], output)
    assert first.num_blocks == 6
    first.judge(4, 1)
    written = {path.name: path.stat().st_mtime_ns for path in Path(output).glob("part-*")}
    (Path(output) / ".half").write_bytes(b"what a killed process leaves")
    (folder / "99-late.png").write_bytes(b"came after the run began")
    second = Run(digits_bundle, [str(folder)], output)
    assert second.num_blocks == 6
    assert second.ledger.finished() == {1, 4}
    second.judge_all()
    (folder / "99-late.png").unlink()
    expected = expected_rows(digits_screener, folder)
    assert_same(rows_of(output), expected)
    assert second.ledger.counts(second.ledger.finished()) == Counts.of(expected)
    assert {path.name: path.stat().st_mtime_ns for path in Path(output).glob("part-*")}.items() >= written.items()


def test_the_folder_is_one_table_to_whatever_reads_parquet(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = Run(digits_bundle, [str(folder)], str(tmp_path / "out"))
    counts = run.judge_all()
    run.ledger.close(counts, run.num_blocks)
    assert parquet.read_table(tmp_path / "out").to_pylist() == rows_of(str(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary == {"num_images": 26, "num_flagged": counts.num_flagged, "num_failed": 2, "num_blocks": 6}


def test_a_file_that_is_named_twice_is_judged_once(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = Run(digits_bundle, [str(folder / "00.png"), str(folder), f"{folder}/"], str(tmp_path / "out"))
    assert run.judge_all().num_images == 26


def test_whatever_its_path_s_spelling(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    spellings = [f"{folder}/../images", f"file://{folder}", f"{tmp_path}/linked", f"file://{folder}/below/../00.png"]
    run = Run(digits_bundle, [str(folder), *spellings], str(tmp_path / "out"))
    assert run.judge_all().num_images == 26
    assert len(find_files([folder, *map(Path, (spellings[0], spellings[2]))])) == 26


def test_a_local_url_is_a_path(digits_bundle: Path, digits_screener: Screener, folder: Path, tmp_path: Path) -> None:
    output = f"file://{tmp_path}/out"
    Run(digits_bundle, [f"file://{folder}"], output).judge_all()
    assert_same(rows_of(output), expected_rows(digits_screener, folder))


def test_folders_are_searched_as_one_process_does(
    digits_bundle: Path, digits_screener: Screener, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / ".hidden").mkdir(parents=True)
    for name in ("l.png", ".l.png", ".hidden/h.png"):
        (tmp_path / "other" / name).write_bytes((folder / "00.png").read_bytes())
    for name, target in (("linked", "other"), ("twice", "other"), ("lost.png", "nowhere"), ("loop.png", "loop.png")):
        (folder / name).symlink_to(f"../{target}" if name != target else target)
    output = str(tmp_path / "out")
    Run(digits_bundle, [str(folder)], output).judge_all()
    expected = expected_rows(digits_screener, folder)
    assert {f"{folder}/linked/l.png", f"{folder}/lost.png", f"{folder}/loop.png"} < set(names_of(expected))
    assert_same(rows_of(output), expected)


def test_paths_are_taken_as_they_are(
    digits_bundle: Path, digits_screener: Screener, folder: Path, tmp_path: Path
) -> None:
    """fsspec chains file systems by two colons."""
    odd = folder.rename(tmp_path / "a::b")
    (odd / "00.png").rename(odd / "x::y.png")
    output = str(tmp_path / "out::put")
    Run(digits_bundle, [str(odd / "x::y.png"), str(odd)], output).judge_all()
    expected = [row for chunk in screen_files(digits_screener, find_files([odd / "x::y.png", odd])) for row in chunk]
    assert_same(rows_of(output), expected)


def test_an_empty_table_is_no_block(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "tables"
    source.mkdir()
    content = (folder / "00.png").read_bytes()
    for name, values in (("empty", []), ("full", [content, content])):
        parquet.write_table(
            pyarrow.table({"image": pyarrow.array(values, pyarrow.binary())}), source / f"{name}.parquet"
        )
    run = Run(digits_bundle, [str(source)], str(tmp_path / "out"))
    assert run.judge_all() == Counts(num_images=2, num_flagged=0, num_failed=0)


def test_a_name_that_the_plan_cannot_hold_is_refused(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(DataError, match="has a name that is not UTF-8"):
        Run(digits_bundle, [str(folder)], str(tmp_path / "out"))


def test_a_bucket_is_read_and_written(
    digits_bundle: Path, digits_screener: Screener, folder: Path, bucket: str
) -> None:
    inputs, output = f"{bucket}/images", f"{bucket}/out"
    fsspec.filesystem("s3").put(str(folder), inputs, recursive=True)
    Run(digits_bundle, [inputs], output).judge(0, 2)
    again = Run(digits_bundle, [inputs], output)
    assert again.ledger.finished() == {0, 2}
    again.judge_all()
    assert_same(rows_of(output), expected_rows(digits_screener, folder), (str(folder), inputs))


@pytest.mark.parametrize("kind", ["bytes", "structures"])
def test_parquet_files_of_images_are_read_by_row_group(
    digits_bundle: Path, digits_screener: Screener, folder: Path, tmp_path: Path, kind: str
) -> None:
    contents: list[bytes | None] = [path.read_bytes() for path in find_files([folder])]
    values = contents if kind == "bytes" else [{"bytes": content, "path": None} for content in contents]
    table = pyarrow.table({"label": list(range(27)), "image": [*values, None]})
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=10)
    run = Run(digits_bundle, [str(tmp_path / "images.parquet")], str(tmp_path / "out"))
    assert run.num_blocks == 3
    run.judge_all()
    rows = rows_of(str(tmp_path / "out"))
    assert [row["image"] for row in rows] == [f"{tmp_path}/images.parquet#{index}" for index in range(27)]
    assert rows[-1]["error"] == f"{tmp_path}/images.parquet#26 holds no bytes"
    for row, wanted in zip(rows[:-1], expected_rows(digits_screener, folder), strict=True):
        assert row["label"] == wanted["label"]
        assert (row["error"] is None) == (wanted["error"] is None)
        if wanted["error"] is None:
            assert row["p_value"] == pytest.approx(wanted["p_value"], rel=1e-4)


def write_table(path: Path, contents: Sequence[bytes], group_size: int) -> None:
    parquet.write_table(pyarrow.table({"image": contents}), path, row_group_size=group_size)


def test_a_parquet_file_is_known_in_capitals(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "T.PARQUET", [(folder / "00.png").read_bytes()] * 3, 2)
    run = Run(digits_bundle, [str(tmp_path / "tables")], str(tmp_path / "out"))
    assert run.judge_all() == Counts(num_images=3, num_flagged=0, num_failed=0)


@pytest.mark.parametrize("group_size", [10, 4])
def test_a_parquet_file_that_was_rewritten_is_refused(
    digits_bundle: Path, folder: Path, tmp_path: Path, group_size: int
) -> None:
    """Even where its blocks are as long as before: rows would be of two states. At once, and when it is read."""
    table = tmp_path / "images.parquet"
    contents = [path.read_bytes() for path in sorted(folder.glob("0?.png"))] * 2
    write_table(table, contents, 10)
    Run(digits_bundle, [str(table)], str(tmp_path / "out")).judge(0)
    write_table(table, contents[::-1], group_size)
    again = Run(digits_bundle, [str(table)], str(tmp_path / "out"))
    options = RayOptions(block_size=5)
    with pytest.raises(DataError, match=r"images\.parquet has changed since the run began"):
        screen_with_ray(
            digits_bundle, [str(table)], again.ledger.address, options, lambda *done: pytest.fail("judged")
        )
    with pytest.raises(DataError, match=r"images\.parquet has changed since the run began"):
        again.judge(1)
    assert again.ledger.finished() == {0}
    again.ledger.check_tables([])  # all its rows are of the one state


def test_so_it_is_where_the_store_tells_no_versions(
    digits_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions.Version, "differs", lambda *pair: False)
    write_table(tmp_path / "images.parquet", [(folder / "00.png").read_bytes()] * 20, 10)
    run = Run(digits_bundle, [str(tmp_path / "images.parquet")], str(tmp_path / "out"))
    for num_rows, group_size in ((30, 15), (20, 4), (10, 10)):
        write_table(tmp_path / "images.parquet", [(folder / "00.png").read_bytes()] * num_rows, group_size)
        with pytest.raises(DataError, match="has changed since the run began"):
            run.judge(1)


def test_an_image_that_was_rewritten_is_refused(
    digits_bundle: Path, digits_screener: Screener, folder: Path, bucket: str, tmp_path: Path
) -> None:
    files = fsspec.filesystem("s3")
    files.put(str(folder), f"{bucket}/images", recursive=True)
    for place, address in ((fsspec.filesystem("file"), str(folder)), (files, f"{bucket}/images")):
        output = f"{tmp_path}/{place.protocol[0]}"
        run = Run(digits_bundle, [address], output)
        run.judge(0)
        content = place.cat_file(f"{address}/22.png")
        place.pipe_file(f"{address}/22.png", content[:-1] + b"!")  # as long
        with pytest.raises(DataError, match=r"22\.png has changed since the run began"):
            run.judge_all()
        assert 0 in run.ledger.finished()


def test_a_plan_that_tells_no_versions_is_refused(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    Run(digits_bundle, [str(folder)], str(tmp_path / "out"))
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    del plan["layout"]
    (tmp_path / "out" / "_plan.json").write_text(json.dumps(plan))
    with pytest.raises(DataError, match="was begun by another version of lgm-guard; name another folder"):
        Run(digits_bundle, [str(folder)], str(tmp_path / "out"))


def test_a_parquet_file_without_the_column_is_refused(digits_bundle: Path, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"pixels": [b""], "label": [1]}), tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"no column 'image'; --image-column names one of pixels, label"):
        Run(digits_bundle, [str(tmp_path / "images.parquet")], str(tmp_path / "out"))
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no Parquet file"):
        Run(digits_bundle, [str(tmp_path / "images.parquet")], str(tmp_path / "out"))


def test_another_run_s_results_are_not_mixed_in(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    Run(digits_bundle, [str(folder)], output)
    other = with_other_card(digits_bundle, tmp_path / "other", "another card")
    with pytest.raises(DataError, match="holds results of another run, version"):
        Run(other, [str(folder)], output)
    with pytest.raises(DataError, match="holds results of another run, inputs"):
        Run(digits_bundle, [str(folder / "below")], output)
    with pytest.raises(DataError, match="holds results of another run, block_size 5 where this one has 6"):
        Run(digits_bundle, [str(folder)], output, block_size=6)


def test_a_folder_of_something_else_is_left_alone(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not empty \(.*\) and no run began there"):
        Run(digits_bundle, [str(folder / "below")], str(folder))


def test_a_bundle_that_was_changed_since_is_refused(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = Run(digits_bundle, [str(folder)], str(tmp_path / "out"))
    other = with_other_card(digits_bundle, tmp_path / "other", "another card")
    job = Job(bundle=other, version="v0", device="cpu", output=str(tmp_path / "out"), image_column="image")
    with pytest.raises(BundleError, match="on this machine, v0 was asked for"):
        BlockScreener(job)
    assert run.ledger.finished() == set()


def test_inputs_that_lead_nowhere_are_named(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for address, said in (
        (str(tmp_path / "none"), "none does not exist"),
        (str(tmp_path / "empty"), "empty holds no image files"),
        ("gopher://elsewhere", "gopher"),
    ):
        with pytest.raises(DataError, match=said):
            Run(digits_bundle, [address], str(tmp_path / "out"))


def test_a_store_that_is_lost_ends_the_run_and_accuses_no_image(
    digits_bundle: Path,
    digits_screener: Screener,
    folder: Path,
    bucket: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, output = f"{bucket}/images", str(folder.parent / "out")
    fsspec.filesystem("s3").put(str(folder), inputs, recursive=True)
    Run(digits_bundle, [inputs], output).judge(0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    run = Run(digits_bundle, [inputs], output)
    with pytest.raises(StoreError, match=r"s3://.*\.png cannot be reached"):
        run.judge(1)
    with pytest.raises(StoreError, match=r"s3://.* cannot be reached"):
        Run(digits_bundle, [inputs], f"{bucket}/elsewhere")
    assert run.ledger.finished() == {0}
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    fsspec.filesystem("s3").clear_instance_cache()
    run.judge_all()
    assert_same(rows_of(output), expected_rows(digits_screener, folder), (str(folder), inputs))


def test_a_file_that_vanished_is_its_row_s_error(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = Run(digits_bundle, [str(folder)], str(tmp_path / "out"))
    (folder / "00.png").unlink()
    assert run.judge(0).num_failed == 2
    assert rows_of(str(tmp_path / "out"))[0]["error"] == f"{folder}/00.png cannot be read: No such file or directory"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    files, _ = fsspec.core.url_to_fs(str(tmp_path))
    (tmp_path / "part").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(files, str(tmp_path / "part"), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
