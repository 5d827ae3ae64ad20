"""`lgm evaluate --engine ray` as a person runs it, with real Rays, of which workers and head nodes are killed."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.detectors.distributed.commands import Command
from tests.detectors.evaluation.test_benchmark import without_times
from tests.ray_cluster import RayCluster

ATTACKS = ("--attacks", "fgsm,pgd", "--eps", "0.1", "--adaptive", "selective-pgd", "--foreign", "noise")
ATTACKS += ("--steps", "40")
LIMITS = ("--limit", 200, "--batch-size", 20)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def evaluation(bundle: Path, output: Path, *options: str, environment: dict[str, str] = ONE_THREAD) -> Command:
    arguments = ("evaluate", bundle, "--data", "digits", *ATTACKS, *LIMITS)
    return Command(*arguments, "--output", output, *options, environment=environment)


def results_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def files_of(output: Path) -> tuple[dict[str, bytes], list[str]]:
    """Whole parts, and the names of batches of one that is not whole."""
    paths = sorted((output / "parts").glob("*.safetensors"))
    parts = {path.name: path for path in paths if path.name.count(".") == 1}
    batches = [path.name for path in paths if f"{path.name.partition('.')[0]}.safetensors" not in parts]
    return {name: path.read_bytes() for name, path in parts.items()}, batches


def is_amid(output: Path) -> bool:
    """A part is whole and another one has begun."""
    parts, batches = files_of(output)
    return len(parts) >= 2 and len(batches) >= 2


@pytest.fixture(scope="module")
def whole(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("whole") / "out"
    run = evaluation(digits_bundle, output)
    assert run.end() == 0, run.said
    return results_of(output)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """To the last bit, on the same processor with as many threads."""
    assert without_times(found["rows"]) == without_times(expected["rows"])
    for name in ("clean", "checks", "worst_cases", "settings", "data", "bundle", "verdict"):
        assert found[name] == expected[name], name


def kills_a_worker(cluster: RayCluster) -> bool:
    """One that judges, of this test's own cluster, if there is one at the moment."""
    for child in psutil.Process(cluster.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "judge_there" in "".join(child.cmdline()):
                child.kill()
                return True
    return False


@pytest.mark.slow
def test_killed_at_work_it_goes_on_and_gives_the_results_of_one_process(
    digits_bundle: Path, whole: dict[str, Any], tmp_path: Path, short_folder: Path
) -> None:
    """The command is killed first; then a worker of the command that goes on."""
    output, cluster = tmp_path / "out", RayCluster(short_folder)
    options = ("--engine", "ray", "--address", cluster.address)
    try:
        killed = evaluation(digits_bundle, output, *options, environment=cluster.environment)
        killed.reaches(lambda: is_amid(output))
        os.killpg(killed.process.pid, signal.SIGKILL)
        assert killed.end() == -signal.SIGKILL
        parts, batches = files_of(output)
        assert batches
        assert not (output / "results.json").exists()
        again = evaluation(digits_bundle, output, *options, environment=cluster.environment)
        again.reaches(lambda: len(files_of(output)[0]) > len(parts))
        again.reaches(lambda: kills_a_worker(cluster))
        assert again.end() == 0, again.said
    finally:
        cluster.kill()
    assert files_of(output)[0].items() >= parts.items()
    assert not files_of(output)[1]
    results = results_of(output)
    assert_same(results, whole)
    assert (results["hardware"]["engine"], results["hardware"]["workers"]) == ("ray", 2)


@pytest.mark.slow
def test_a_lost_head_node_ends_it_with_a_word_and_one_process_can_go_on(
    digits_bundle: Path, whole: dict[str, Any], tmp_path: Path, short_folder: Path
) -> None:
    output, cluster = tmp_path / "out", RayCluster(short_folder)
    options = ("--engine", "ray", "--address", cluster.address)
    try:
        run = evaluation(digits_bundle, output, *options, environment=cluster.environment)
        run.reaches(lambda: is_amid(output))
    finally:
        cluster.kill()
    assert run.end() == 2, run.said
    assert f"the head node of the Ray cluster, {cluster.address}, is lost" in run.said
    parts, batches = files_of(output)
    assert batches
    again = evaluation(digits_bundle, output)
    assert again.end() == 0, again.said
    assert files_of(output)[0].items() >= parts.items()
    assert_same(results_of(output), whole)
