"""An evaluation's batches judged one by one as workers do: what Ray does is to choose which, and where."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from detectors.distributed import cluster
from detectors.distributed.cluster import ClusterError
from detectors.distributed.evaluating import Attacked, hardware_there, judge_there
from detectors.evaluation import cli
from detectors.evaluation.batches import Batch, clean_batches
from detectors.evaluation.benchmark import Evaluation
from detectors.evaluation.inputs import Inputs, load_inputs
from detectors.evaluation.parts import Part
from detectors.evaluation.settings import Task
from detectors.evaluation.watcher import Silent
from model.errors import BundleError, ConfigurationError
from tests.commands import alone
from tests.detectors.evaluation.conftest import SETTINGS
from tests.detectors.evaluation.test_benchmark import without_times


class Elsewhere:
    """As on workers: by their function, of what was sent, in another order; only parts come back."""

    def __init__(self, attacked: Attacked):
        self._attacked = attacked

    def judge(self, task: Task | None, batches: Iterable[Batch]) -> Iterator[Part]:
        sent = [pickle.dumps((self._attacked, task, batch)) for batch in batches]
        done = {index: pickle.dumps(judge_there(*pickle.loads(sent[index]))) for index in reversed(range(len(sent)))}
        return (pickle.loads(done[index]) for index in range(len(sent)))

    def hardware(self) -> dict[str, Any]:
        return hardware_there(self._attacked)


@pytest.fixture(scope="module")
def inputs(digits_bundle: Path) -> Inputs:
    """Random starts, random noise, an attack that knows the detector, images of no class: three batches of each."""
    settings = replace(SETTINGS, attacks=("pgd",), eps=(0.1,), severities=(1,), batch_size=20)
    return load_inputs(digits_bundle, settings)


@pytest.fixture
def attacked(digits_bundle: Path, inputs: Inputs) -> Attacked:
    return Attacked(bundle=digits_bundle, version=inputs.manifest.version, device="cpu")


def test_batches_judged_elsewhere_and_in_any_order_give_the_results_of_one_process(
    inputs: Inputs, attacked: Attacked, tmp_path: Path
) -> None:
    here = Evaluation(inputs, tmp_path / "here", Silent(), command="")
    there = Evaluation(inputs, tmp_path / "there", Silent(), command="", engine=Elsewhere(attacked))
    expected_results, results = here.run(), there.run()
    assert without_times(results["rows"]) == without_times(expected_results["rows"])
    for name in ("clean", "checks", "worst_cases", "settings", "data", "bundle"):
        assert results[name] == expected_results[name], name
    assert any(len(one.part.misses) for one in here.measured)
    for found, expected in zip(there.measured, here.measured, strict=True):
        assert found.part.misses.tolist() == expected.part.misses.tolist()


def test_a_batch_takes_no_image_along_but_its_own(inputs: Inputs) -> None:
    batches = list(clean_batches(inputs, inputs.test))
    assert len(batches) > 10
    own = sum(batch.images.nbytes + batch.labels.nbytes for batch in batches)
    assert sum(len(pickle.dumps(batch)) for batch in batches) < 3 * own


def test_a_worker_with_another_bundle_judges_nothing(inputs: Inputs, attacked: Attacked) -> None:
    batch = next(clean_batches(inputs, inputs.test))
    other = Attacked(bundle=attacked.bundle, version="v0", device="cpu")
    for work in (lambda: judge_there(other, None, batch), lambda: hardware_there(other)):
        with pytest.raises(BundleError, match="on this machine, v0 was asked for"):
            work()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (("--engine", "dask"), ConfigurationError, "engine: 'dask' is not known; use process or ray"),
        (("--engine", "ray", "--address", "head"), ConfigurationError, "must be HOST:PORT of the head node"),
        (("--engine", "ray", "--address", "127.0.0.1:9"), ClusterError, "no Ray cluster answers at 127.0.0.1:9"),
    ],
)
def test_options_that_lead_nowhere_are_named_before_any_work(
    digits_bundle: Path, tmp_path: Path, options: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    error = evaluate(digits_bundle, tmp_path / "out", *options)
    assert isinstance(error, kind)
    assert said in str(error)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    error = evaluate(digits_bundle, tmp_path / "out", "--engine", "ray")
    assert isinstance(error, ConfigurationError)
    assert str(error) == "this needs ray: pip install 'lgm-guard[scale]'"


def evaluate(bundle: Path, output: Path, *options: str) -> BaseException | None:
    arguments = ("--data", "digits", "--attacks", "fgsm", "--eps", "0.1", "--output", str(output))
    return CliRunner().invoke(alone(cli.evaluate), [str(bundle), *arguments, *options]).exception
