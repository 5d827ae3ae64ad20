"""results.json as it is read again: what a comparison uses of it is checked, the rest is left alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from detectors.evaluation.benchmark import RESULTS, SCHEMA_VERSION
from detectors.evaluation.settings import EvaluationError, Group

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What results.json holds, and the folder that it lies in, beside the parts of its run."""

    content: Mapping[str, Any]
    folder: Path


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Bundle(_Read):
    name: str
    version: str
    false_alarm_rate: Share


class _Data(_Read):
    name: str
    digest: str
    num_a_seed: Count


class _Check(_Read):
    level: str


class _Row(_Read):
    group: Group
    attack: str
    eps: float | None
    norm: str
    steps: int | None
    severity: int | None
    knowledge: str
    restarts: int | None
    targeted: bool
    on_curve: bool
    detector: str
    seed: int
    num_clean: Count
    num_adversarial: Count
    num_judged: Count
    attacked_accuracy: Share | None
    auroc: Share | None
    auroc_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None
    tpr_at_fpr_5: Share | None
    tpr_at_fpr_1: Share | None
    sr_at_5: Share | None
    robust_accuracy_with_rejection: Share | None
    realised_false_alarm_rate: Share | None

    @model_validator(mode="after")
    def _has_its_interval(self) -> "_Row":
        if self.auroc is not None and self.auroc_interval is None:
            raise ValueError("auroc has no auroc_interval")
        return self


class _Content(_Read):
    bundle: _Bundle
    data: _Data
    checks: list[_Check]
    rows: list[_Row]
    command: str = ""


def load_results(path: Path) -> Results:
    """results.json, or that of a folder.

    Raises EvaluationError: none there, of another schema, or a member that is missing or of another type or range.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise EvaluationError(f"{file} is not JSON") from None
    except RecursionError:
        raise EvaluationError(f"{file} is not an evaluation's results: nested too deeply") from None
    _check_schema(file, content)
    try:
        _Content.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise EvaluationError(f"{file}: {place}: {problem['msg']}") from None
    return Results(content=content, folder=file.parent)


def _check_schema(file: Path, content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(schema := content.get("schema_version"), int):
        raise EvaluationError(f"{file} is not an evaluation's results")
    if schema != SCHEMA_VERSION:
        todo = "update lgm-guard" if schema > SCHEMA_VERSION else "run lgm evaluate again"
        raise EvaluationError(
            f"{file} has schema version {schema}; this version of lgm-guard reads {SCHEMA_VERSION}: {todo}"
        )
