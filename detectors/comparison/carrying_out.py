"""Train and judge every run of a comparison; what is done is kept, so that an interrupted one goes on from there."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from detectors.comparison.judging import Row, check_images, judge
from detectors.comparison.planning import Run, training_folder
from detectors.comparison.settings import Abnormal, ComparisonError
from detectors.evaluation.parts import write_json
from model.config import DataConfig, dump_config
from model.data import Splits, load_splits
from model.errors import DivergenceError
from model.train import train
from model.training_log import Report, Silent

FAILED = "failed"
ROWS = "rows"
_Load = Callable[[DataConfig], Splits]


@runtime_checkable
class Watcher(Protocol):
    """Whoever wants to know how a comparison goes. finish: the run's row, which may be that of an earlier call."""

    def start(self, run: Run, number: int, total: int) -> None: ...

    def epoch(self, run: Run, done: float) -> None: ...

    def finish(self, run: Run, row: Row) -> None: ...


class _Told(Silent):
    """A training's progress in epochs, for the watcher."""

    def __init__(self, run: Run, watcher: Watcher):
        self._run, self._watcher = run, watcher

    def step(self, epoch: int, step: int, report: Report) -> None:
        if step % 20 == 0:
            self._watcher.epoch(self._run, float(epoch))

    def finish_epoch(self, figures: dict[str, float]) -> None:
        self._watcher.epoch(self._run, figures["epoch"])


def carry_out(runs: Sequence[Run], abnormal: Abnormal, output: Path, watcher: Watcher) -> list[Row]:
    """The rows of all runs, in order. A training that diverges leaves a row that says so, and the others go on.

    Before any training, raises ComparisonError where the output cannot be written, and DataError where images are
    missing or foreign ones have another shape. Raises what training raises: CheckpointError where the folder holds a
    run with another configuration.
    """
    _make(output / ROWS)
    load = lru_cache(maxsize=1)(load_splits)  # decoding a folder of images can take as long as a short training
    for data in dict.fromkeys(run.config.data for run in runs):
        check_images(data, load(data), abnormal)
    rows = []
    for number, run in enumerate(runs, 1):
        watcher.start(run, number, len(runs))
        row = _kept(run, abnormal, output)
        if row is None:
            row = _row_of(run, load, abnormal, output, watcher)
            _keep(run, abnormal, row, output)
        watcher.finish(run, row)
        rows.append(row)
    return rows


def _row_of(run: Run, load: _Load, abnormal: Abnormal, output: Path, watcher: Watcher) -> Row:
    folder, splits = training_folder(output, run.training_key), load(run.config.data)
    told = _Told(run, watcher)
    try:
        checkpoint = train(run.config, folder, told, command=f"lgm compare: {run.key}", splits=splits)
    except DivergenceError as error:
        names = {"experiment": run.experiment.name, "variant": run.variant, "loss": run.config.loss.name}
        return {**names, "seed": run.seed, **run.grid, FAILED: str(error)}
    return judge(run, checkpoint, splits, abnormal)


def _path(run: Run, output: Path) -> Path:
    return output / ROWS / f"{run.key}.json"


def _facts(run: Run, abnormal: Abnormal) -> Mapping[str, Any]:
    """What a row depends on; of other facts it is measured anew."""
    judged = {name: getattr(abnormal, name) for name in ("attacks", "eps", "steps", "foreign", "limit", "num_pairs")}
    facts: Mapping[str, Any] = json.loads(json.dumps({"config": dump_config(run.config), "abnormal": judged}))
    return {**facts, "torch": torch.__version__, **({"fitted": True} if run.fitted else {})}


def _kept(run: Run, abnormal: Abnormal, output: Path) -> Row | None:
    try:
        found = json.loads(_path(run, output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    row: Row | None = found["row"] if found.get("facts") == _facts(run, abnormal) else None
    return row


def _keep(run: Run, abnormal: Abnormal, row: Row, output: Path) -> None:
    path = _path(run, output)
    _make(path.parent)
    write_json(path, {"facts": _facts(run, abnormal), "row": row})


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"{folder} cannot be made: {error.strerror}; choose another --output") from None
