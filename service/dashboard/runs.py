"""Evaluation runs in a folder, as `lgm evaluate --output` leaves them: results.json, and report.html beside it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RESULTS, REPORT = "results.json", "report.html"
MAX_BYTES = 64 * 1024 * 1024
MOST_RUNS = 200
FUSED, REFUSED = "fused", "refused"


class Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class Row(Read):
    """Of the verdict, under one attack, on one corruption at one severity, or on one foreign set."""

    attack: str
    group: str = "attack"
    seed: int | None = None
    severity: int | None = None
    steps: int | None = None
    eps: float | None
    norm: str | None
    knowledge: str | None
    detector: str
    num_adversarial: int
    num_successful: int
    attacked_accuracy: float | None
    auroc: float | None
    tpr_at_fpr_5: float | None
    tpr_at_fpr_1: float | None


class Check(Read):
    """A self-check of the run."""

    level: str
    message: str


class Named(Read):
    name: str


class Bundle(Named):
    version: str
    false_alarm_rate: float


class Results(Read):
    bundle: Bundle
    data: Named
    verdict: str = ""
    checks: tuple[Check, ...] = ()
    command: str = ""
    rows: tuple[Row, ...] = Field(default=())

    @property
    def verdicts(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.detector == FUSED)

    @property
    def refusal(self) -> str | None:
        """Why nobody should rely on the figures; None where they stand."""
        if self.verdict != REFUSED:
            return None
        told = "; ".join(check.message for check in self.checks if check.level == "refuse")
        return told or "a self-check refused them"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """results is None where fault says why."""

    name: str
    changed: datetime
    has_report: bool
    results: Results | None
    fault: str = ""


def find_runs(folder: Path) -> list[Run]:
    """The newest first, and no more than MOST_RUNS. Raises OSError where the folder cannot be read."""
    found = [path for path in folder.iterdir() if (path / RESULTS).is_file()]
    found.sort(key=lambda path: (path / RESULTS).stat().st_mtime, reverse=True)
    return list(map(_read, found[:MOST_RUNS]))


def file_of(folder: Path, name: str, file: str) -> Path | None:
    """A run's file, if it is one of the two and lies where it should."""
    if file not in (RESULTS, REPORT) or Path(name).name != name:
        return None
    path = (folder / name / file).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _read(folder: Path) -> Run:
    path = folder / RESULTS
    known = path.stat()
    changed = datetime.fromtimestamp(known.st_mtime, UTC)
    has_report = (folder / REPORT).is_file()
    try:
        if known.st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes, the limit")
        results = Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        fault = f"{'.'.join(map(str, problem['loc'])) or RESULTS}: {problem['msg']}"
    except (OSError, ValueError) as error:
        fault = str(error)
    else:
        return Run(name=folder.name, changed=changed, has_report=has_report, results=results)
    return Run(name=folder.name, changed=changed, has_report=has_report, results=None, fault=fault)
