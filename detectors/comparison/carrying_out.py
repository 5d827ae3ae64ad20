"""Train and judge every run of a comparison; what is done is kept, so that an interrupted one goes on from there."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from detectors.comparison.judging import Images, Row, judge
from detectors.comparison.planning import Run, training_folder
from detectors.comparison.settings import Abnormal, ComparisonError
from detectors.evaluation.parts import write_json
from model.config import dump_config
from model.data import Splits
from model.errors import DivergenceError
from model.train import train
from model.training_log import Report, Silent

FAILED = "failed"
ROWS = "rows"


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
    # Decoding a folder of images can take as long as a short training.
    load = lru_cache(maxsize=1)(partial(Images.load, abnormal=abnormal))
    for data in dict.fromkeys(run.config.data for run in runs):
        load(data)
    rows = []
    for number, run in enumerate(runs, 1):
        watcher.start(run, number, len(runs))
        images = load(run.config.data)
        facts = _facts(run, abnormal, images)
        row = _kept(run, facts, output)
        if row is None:
            row = _row_of(run, images.splits, abnormal, output, watcher)
            _keep(run, facts, row, output)
        watcher.finish(run, row)
        rows.append(row)
    return rows


def _row_of(run: Run, splits: Splits, abnormal: Abnormal, output: Path, watcher: Watcher) -> Row:
    folder, told = training_folder(output, run.training_key), _Told(run, watcher)
    try:
        checkpoint = train(run.config, folder, told, command=f"lgm compare: {run.key}", splits=splits)
    except DivergenceError as error:
        names = {"experiment": run.experiment.name, "variant": run.variant, "loss": run.config.loss.name}
        return {**names, "seed": run.seed, **run.grid, FAILED: str(error)}
    return judge(run, checkpoint, splits, abnormal)


def _path(run: Run, output: Path) -> Path:
    return output / ROWS / f"{run.key}.json"


def _facts(run: Run, abnormal: Abnormal, images: Images) -> Mapping[str, Any]:
    """What a row depends on; of other facts it is measured anew."""
    judged = {name: getattr(abnormal, name) for name in ("attacks", "eps", "steps", "foreign", "limit", "num_pairs")}
    facts: Mapping[str, Any] = json.loads(json.dumps({"config": dump_config(run.config), "abnormal": judged}))
    about = {"torch": torch.__version__, "images": images.digest}
    return {**facts, **about, **({"fitted": True} if run.fitted else {})}


def _kept(run: Run, facts: Mapping[str, Any], output: Path) -> Row | None:
    try:
        found = json.loads(_path(run, output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    row: Row | None = found["row"] if found.get("facts") == facts else None
    return row


def _keep(run: Run, facts: Mapping[str, Any], row: Row, output: Path) -> None:
    path = _path(run, output)
    _make(path.parent)
    write_json(path, {"facts": facts, "row": row})


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"{folder} cannot be made: {error.strerror}; choose another --output") from None
