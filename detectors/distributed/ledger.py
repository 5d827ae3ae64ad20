"""What a run set out to do and what of it is done: a folder of results that a killed run goes on with.

    OUTPUT/_inputs.parquet      every block's inputs, as they were found when the run began
    OUTPUT/_plan.json           what was asked; written last, so that it vouches for the inputs
    OUTPUT/part-000000.parquet  a block's rows, whole or not there; its footer holds the block's counts
    OUTPUT/_summary.json        the sums, once every part is there

Each input stands in one block, each block has one name, and a part appears at once: so each input has one row,
however often blocks were begun. Names that begin with an underscore are no data to whatever reads such folders.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from detectors.bulk import Counts, Row, arrow_schema
from detectors.distributed.places import open_place, reachable, write_whole
from detectors.distributed.sources import Block
from detectors.distributed.versions import Version, check_version
from model.errors import DataError

PLAN, INPUTS, SUMMARY = "_plan.json", "_inputs.parquet", "_summary.json"
PART = re.compile(r"part-(\d{6,})\.parquet")
COUNTS = b"lgm"
LAYOUT = 2  # of plan and inputs: the first did not tell how files were when the run began


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was asked. Of another answer to any of it the rows would not fit together."""

    bundle: str
    version: str
    inputs: tuple[str, ...]
    block_size: int
    image_column: str


class Ledger:
    """One output folder, local or by URL. Every method raises StoreError where it cannot be reached."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._files, self._root = open_place(self.address)

    def begin(self, plan: Plan, blocks: Iterator[Block]) -> int:
        """Write down the blocks, unless this very run has begun before; how many there are.

        Raises DataError where the folder holds another run's results or anything else.
        """
        with reachable(self.address):
            self._files.makedirs(self._root, exist_ok=True)
            if not self._files.exists(self._path(PLAN)):
                self._check_vacant()
                num_blocks = self._write_inputs(blocks)
                self._write(
                    PLAN, json.dumps({"layout": LAYOUT, **asdict(plan), "num_blocks": num_blocks}, indent=2).encode()
                )
                return num_blocks
            written: dict[str, Any] = json.loads(self._files.cat_file(self._path(PLAN)))
        if written.get("layout") != LAYOUT:
            raise DataError(
                f"{self.address} was begun by another version of lgm-guard; name another folder with --output"
            )
        num_blocks = int(written.pop("num_blocks"))
        asked = json.loads(json.dumps(asdict(plan)))
        if differing := [name for name in asked if asked[name] != written.get(name)]:
            name = differing[0]
            raise DataError(
                f"{self.address} holds results of another run, {name} {written.get(name)!r} where this one has "
                f"{asked[name]!r}; name another folder with --output"
            )
        return num_blocks

    def finished(self) -> set[int]:
        """The numbers of the blocks that are done."""
        with reachable(self.address):
            return {int(found[1]) for name in self._names() if (found := PART.fullmatch(name))}

    def block(self, number: int) -> Block:
        return next(self._blocks([number]))

    def check_tables(self, numbers: Iterable[int]) -> None:
        """Raises DataError for a Parquet file of those blocks that changed since: their rows would be of two states.

        Reading finds that as well, but only when other blocks have been judged in vain.
        """
        tables = {block.paths[0]: block.versions[0] for block in self._blocks(numbers) if block.row_group is not None}
        for path, version in tables.items():
            with reachable(path):
                check_version(path, *open_place(path), version)

    def finish(self, number: int, rows: Iterable[list[Row]]) -> Counts:
        """Write a block's part; what comes back is in the part as well."""
        import pyarrow
        import pyarrow.parquet

        tables, counts = [], Counts()
        for chunk in rows:
            tables.append(pyarrow.Table.from_pylist(chunk, schema=arrow_schema(chunk[0])))
            counts += Counts.of(chunk)
        table = pyarrow.concat_tables(tables).replace_schema_metadata({COUNTS: json.dumps(asdict(counts))})
        content = io.BytesIO()
        pyarrow.parquet.write_table(table, content)
        with reachable(self.address):
            self._write(_part(number), content.getvalue())
        return counts

    def counts(self, numbers: Iterable[int]) -> Counts:
        """The sum over parts that are there."""
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(self._counts_of, numbers), Counts())

    def close(self, counts: Counts, num_blocks: int) -> None:
        with reachable(self.address):
            self._write(SUMMARY, json.dumps({**asdict(counts), "num_blocks": num_blocks}, indent=2).encode())

    def _blocks(self, numbers: Iterable[int]) -> Iterator[Block]:
        import pyarrow.parquet

        with reachable(self.address), self._files.open(self._path(INPUTS)) as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            for number in numbers:
                row: dict[str, Any] = table.read_row_group(number).to_pylist()[0]
                versions = tuple(Version(**version) for version in row["versions"])
                yield Block(**{**row, "paths": tuple(row["paths"]), "versions": versions})

    def _counts_of(self, number: int) -> Counts:
        import pyarrow.parquet

        path = f"{self.address}/{_part(number)}"
        with reachable(path), self._files.open(self._path(_part(number))) as stream:
            metadata = pyarrow.parquet.read_schema(stream).metadata
        if not metadata or COUNTS not in metadata:
            raise DataError(f"{path} was not written by lgm screen; delete it to have its block judged again")
        return Counts(**json.loads(metadata[COUNTS]))

    def _check_vacant(self) -> None:
        """Inputs without a plan are what a run left that was killed while it wrote them."""
        if foreign := [name for name in self._names() if name != INPUTS and not name.startswith(".")]:
            raise DataError(f"{self.address} is not empty ({foreign[0]}) and no run began there; name another folder")

    def _write_inputs(self, blocks: Iterator[Block]) -> int:
        """A row group each, so that a worker reads its own block's alone."""
        import pyarrow
        import pyarrow.parquet

        text, number = pyarrow.string(), pyarrow.int64()
        versions = pyarrow.list_(pyarrow.struct([("size", number), ("tag", text)]))
        columns = [("paths", pyarrow.list_(text)), ("versions", versions)]
        columns += [(name, number) for name in ("row_group", "first_row", "num_rows")]
        schema = pyarrow.schema(columns)
        num_blocks, content = 0, io.BytesIO()
        with pyarrow.parquet.ParquetWriter(content, schema) as writer:
            for block in blocks:
                writer.write_table(pyarrow.Table.from_pylist([asdict(block)], schema=schema))
                num_blocks += 1
        self._write(INPUTS, content.getvalue())
        return num_blocks

    def _names(self) -> list[str]:
        """Object stores know no empty folders."""
        try:
            return [path.rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self._files, self._path(name), content)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"
