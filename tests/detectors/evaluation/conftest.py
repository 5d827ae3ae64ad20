"""One small evaluation of the digits bundle, and hand-made outcomes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.evaluation.benchmark import Evaluation
from detectors.evaluation.inputs import Inputs, load_inputs
from detectors.evaluation.parts import Part
from detectors.evaluation.rows import Measured
from detectors.evaluation.settings import Settings, Task
from detectors.evaluation.watcher import Silent

SETTINGS = Settings(
    data="digits",
    attacks=("fgsm", "bim", "deepfool"),
    eps=(0.1, 0.3),
    steps=(5,),
    adaptive=("selective-pgd",),
    corruptions=("gaussian-noise",),
    severities=(1, 5),
    foreign=("noise",),
    limit=60,
    batch_size=32,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    inputs: Inputs
    output: Path
    evaluation: Evaluation
    results: dict[str, Any]


@pytest.fixture(scope="session")
def finished(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Attacks of all kinds, a corruption and a foreign set on 60 digits."""
    output = tmp_path_factory.mktemp("evaluations") / "digits"
    inputs = load_inputs(digits_bundle, SETTINGS)
    evaluation = Evaluation(inputs, output, Silent(), command="lgm evaluate digits")
    return Finished(inputs=inputs, output=output, evaluation=evaluation, results=evaluation.run())


@pytest.fixture
def make_part() -> Callable[..., Part]:
    return _make_part


def _make_part(labels: list[int], predictions: list[int], **p_values: list[float]) -> Part:
    """A part whose scores are 1 - p; p-values by detector."""
    said = {name: np.array(values, dtype=np.float32) for name, values in p_values.items()}
    return Part(
        labels=np.array(labels),
        predictions=np.array(predictions),
        scores={name: 1 - values for name, values in said.items()},
        p_values=said,
        seconds=2.0,
        attack_seconds=1.5,
        perturbation={"linf": 0.1, "l2": 0.5},
        misses=np.zeros((0, 2, 1, 2, 2), dtype=np.float32),
        miss_facts=np.zeros((0, 3)),
    )


@pytest.fixture
def outcome() -> Callable[..., Measured]:
    """An attack on images of class 0, all classified right before, with these images right afterwards."""

    def make(right: np.ndarray, *, p_value: float = 1.0, **task: Any) -> Measured:
        count = len(right)
        values = {"group": "attack", "name": "pgd", "knowledge": "zero", "norm": "linf", "seed": 0, "eps": 0.1}
        wrong = (~right).astype(int).tolist()
        return Measured(
            task=Task(**(values | task)),
            part=_make_part([0] * count, wrong, fused=[p_value] * count),
            clean=_make_part([0] * count, [0] * count, fused=[1.0] * count),
        )

    return make
