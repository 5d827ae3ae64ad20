"""Judging many images: files, folders or a data set -> one row each, streamed to CSV or Parquet."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from detectors.screener import Screener, Verdicts
from model.errors import DataError, ImageError
from model.image_files import Met, image_files
from model.image_set import ImageSet, to_unit
from model.image_tensors import read_image
from model.output import told_of, written

CHUNK = 256
Row = dict[str, Any]
Write = Callable[[list[Row]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Of the rows of a chunk, or of many together."""

    num_images: int = 0
    num_flagged: int = 0
    num_failed: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Counts":
        listed = list(rows)
        return cls(
            num_images=len(listed),
            num_flagged=sum(row["flagged"] is True for row in listed),
            num_failed=sum(row["error"] is not None for row in listed),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Files as given, folders searched for image files, each file once however often it is named.

    Raises DataError for a path that leads to none.
    """
    met = Met()
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds no image files")
        found += filter(met.is_new, inside)
    return found


def screen_files(screener: Screener, files: Sequence[Path]) -> Iterator[list[Row]]:
    """Rows in the order of the files, a chunk at a time; a file that cannot be read is a row with its error."""

    def read(path: Path) -> Tensor | str:
        try:
            return read_image(path, screener.image_format)
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for paths in _chunks(files):
            yield judge_chunk(screener, list(map(str, paths)), list(pool.map(read, paths)))


def judge_chunk(screener: Screener, names: Sequence[str], images: Sequence[Tensor | str]) -> list[Row]:
    """A row for each name: what is said of its image (c, h, w) uint8, or the error that stands in its place."""
    good = [image for image in images if isinstance(image, Tensor)]
    judged = iter(_rows(screener, torch.stack(good)) if good else [])
    return [
        {"image": written(name), **(next(judged) if isinstance(image, Tensor) else _failed(screener, image))}
        for name, image in zip(names, images, strict=True)
    ]


def screen_set(screener: Screener, images: ImageSet) -> Iterator[list[Row]]:
    """Rows of a data set's images, named by their index, with the true label beside."""
    for start in range(0, len(images), CHUNK):
        rows = _rows(screener, images.images[start : start + CHUNK])
        yield [
            {"image": str(start + offset), **row, "true_label": images.class_names[int(label)]}
            for offset, (row, label) in enumerate(zip(rows, images.labels[start : start + CHUNK], strict=True))
        ]


def check_output(output: Path | None) -> None:
    """Raises DataError unless rows can be written there: asked before any work is done."""
    if output is None:
        return
    if not output.parent.is_dir():
        raise DataError(f"{output.parent} is not a folder")
    if output.suffix not in {".csv", ".parquet"}:
        raise DataError(f"{output} must end in .csv or .parquet")
    if output.is_dir():
        raise DataError(f"{output} is a folder; name a file")
    if output.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DataError("Parquet needs pyarrow: pip install 'lgm-guard[parquet]'")


@contextmanager
def row_writer(output: Path | None) -> Iterator[Write]:
    """Writes rows to a .csv or .parquet file, which appears only when all is done, or to standard output as CSV.

    Raises DataError for another ending, a folder that does not exist or cannot be written to.
    """
    if output is None:
        yield _csv_writer(sys.stdout)
        sys.stdout.flush()
        return
    check_output(output)
    with told_of(output), TemporaryDirectory(prefix=".", dir=output.parent) as folder:
        temporary = Path(folder, output.name)
        if output.suffix == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as file:
                yield _csv_writer(file)
        else:
            with _parquet_writer(temporary) as write:
                yield write
        temporary.replace(output)


def _rows(screener: Screener, images: Tensor) -> list[Row]:
    verdicts = screener.screen(to_unit(images))
    columns = _columns(screener, verdicts)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(screener: Screener, verdicts: Verdicts) -> dict[str, list[Any]]:
    class_index = verdicts.class_index.tolist()
    chosen = verdicts.probabilities.gather(1, verdicts.class_index.unsqueeze(1)).squeeze(1)
    columns = {
        "label": [screener.labels[index] for index in class_index],
        "class_index": class_index,
        "probability": chosen.tolist(),
        "log_likelihood": verdicts.log_likelihood.tolist(),
        "p_value": verdicts.p_value.tolist(),
        "flagged": verdicts.flagged.tolist(),
    }
    for name, said in verdicts.evidence.items():
        columns[f"{name}_score"] = said.score.tolist()
        columns[f"{name}_p_value"] = said.p_value.tolist()
    return {**columns, "error": [None] * len(class_index)}


def _failed(screener: Screener, error: str) -> Row:
    names = ["label", "class_index", "probability", "log_likelihood", "p_value", "flagged"]
    names += [f"{detector}_{kind}" for detector in screener.detectors for kind in ("score", "p_value")]
    return {**dict.fromkeys(names), "error": written(error)}


def _chunks(files: Iterable[Path]) -> Iterator[list[Path]]:
    remaining = iter(files)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


def _csv_writer(file: Any) -> Write:
    writer: csv.DictWriter[str] | None = None

    def write(rows: list[Row]) -> None:
        nonlocal writer
        if writer is None:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
        writer.writerows(rows)

    return write


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    writer: Any = None

    def write(rows: list[Row]) -> None:
        nonlocal writer
        schema = arrow_schema(rows[0])
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def arrow_schema(columns: Iterable[str]) -> Any:
    """The types of a Parquet file of rows: by column, not by value, since unreadable files have none."""
    import pyarrow

    known = {"class_index": pyarrow.int64(), "flagged": pyarrow.bool_()}
    texts = {"image", "label", "true_label", "error"}
    return pyarrow.schema(
        [(name, pyarrow.string() if name in texts else known.get(name, pyarrow.float64())) for name in columns]
    )
