import json
from copy import deepcopy
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import norm

from detectors.evaluation.compare import SHARES, TITLES, Comparison
from detectors.evaluation.compare import compare as compare_results
from detectors.evaluation.comparison import comparison_json, comparison_page, comparison_table
from detectors.evaluation.pairs import TASK
from detectors.evaluation.results import Results, load_results
from detectors.evaluation.settings import EvaluationError
from detectors.evaluation.summaries import CELL
from tests.detectors.evaluation.conftest import Finished
from tests.detectors.evaluation.test_report import Page


@pytest.fixture
def results(finished: Finished) -> dict[str, Any]:
    return deepcopy(finished.results)


def compare(first: dict[str, Any], second: dict[str, Any], *, folder: Path = Path("without-parts")) -> Comparison:
    """Without parts, two runs are independent."""
    return compare_results(Results(content=first, folder=folder), Results(content=second, folder=folder))


def test_a_run_against_itself_differs_in_nothing(results: dict[str, Any]) -> None:
    comparison = compare(results, results)
    assert comparison.cautions == []
    assert {found.difference for found in comparison.differences} == {0.0}
    assert not any(found.clear for found in comparison.differences)
    assert all(found.interval[0] <= 0 <= found.interval[1] for found in comparison.differences)
    told = {(found.attack, found.eps, found.severity, found.detector) for found in comparison.differences}
    assert len(told) == len(results["rows"])
    assert {found.figure for found in comparison.differences} == set(TITLES)


def test_differences_are_second_less_first_with_newcombes_interval(results: dict[str, Any]) -> None:
    other = deepcopy(results)
    row = other["rows"][0]
    row["num_adversarial"], row["sr_at_5"] = 80, 0.6
    results["rows"][0]["num_adversarial"], results["rows"][0]["sr_at_5"] = 70, 0.8
    (found,) = [
        one
        for one in compare(other, results).differences
        if one.figure == "sr_at_5" and (one.attack, one.eps, one.detector) == ("fgsm", 0.1, "fused")
    ]
    assert (found.first, found.second, found.clear) == (0.6, 0.8, True)
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)  # Newcombe 1998, table II (a)


def test_the_interval_of_an_area_comes_from_both_bootstraps(results: dict[str, Any]) -> None:
    """Normal intervals of equal width w give one of width w sqrt 2."""
    other, width = deepcopy(results), norm.ppf(0.975) * 0.01
    for one, value in ((results, 0.90), (other, 0.95)):
        one["rows"][0] |= {"auroc": value, "auroc_interval": [value - width, value + width]}
    found = next(one for one in compare(results, other).differences if one.figure == "auroc")
    assert found.difference == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.05 - width * 2**0.5, 0.05 + width * 2**0.5))


def test_rows_are_matched_by_attack_eps_and_seed_and_the_rest_is_told(results: dict[str, Any]) -> None:
    other = deepcopy(results)
    other["rows"] = [row for row in reversed(other["rows"]) if row["attack"] != "bim"]
    other["data"] |= {"digest": "other", "num_a_seed": 10}
    other["bundle"]["false_alarm_rate"] = 0.01
    other["checks"][0]["level"] = "refuse"
    comparison = compare(results, other)
    assert {found.difference for found in comparison.differences} == {0.0}
    assert "bim" not in {found.attack for found in comparison.differences}
    cautions = " ".join(comparison.cautions)
    left = f"{len(results['rows']) - len(other['rows'])} rows of the first"
    for told in ("different test images", "numbers of images", "promise different", left, "refuse"):
        assert told in cautions


def test_on_the_same_images_intervals_are_from_pairs(finished: Finished) -> None:
    """Of all but foreign images, with the figures that independent runs have."""
    found = load_results(finished.output)
    together = compare_results(found, found)
    apart = compare_results(found, replace(found, folder=finished.output / "moved"))
    assert len(together.differences) == len(apart.differences)
    for one, other in zip(together.differences, apart.differences, strict=True):
        assert one.paired == (one.attack != "noise")
        assert not other.paired
        assert replace(one, interval=other.interval, paired=False) == other
        widths = [high - low for low, high in (one.interval, other.interval)]
        assert widths[0] <= widths[1] + 1e-12
        assert one.interval[0] <= 0 <= one.interval[1]
    accuracy = [
        (one.interval[1] - one.interval[0]) / (other.interval[1] - other.interval[0])
        for one, other in zip(together.differences, apart.differences, strict=True)
        if one.figure == "attacked_accuracy" and 0.1 < one.first < 0.9
    ]
    assert accuracy
    assert max(accuracy) < 0.5


@pytest.mark.parametrize("fact", [{"digest": "other"}, {"num_a_seed": 59}])
def test_other_images_are_never_paired(fact: dict[str, Any], finished: Finished) -> None:
    found = load_results(finished.output)
    other = replace(found, content={**found.content, "data": {**found.content["data"], **fact}})
    assert not any(one.paired for one in compare_results(found, other).differences)


def test_how_intervals_were_made_is_told(results: dict[str, Any], finished: Finished) -> None:
    apart, mixed = compare(results, results), compare(results, results, folder=finished.output)
    results["rows"] = [row for row in results["rows"] if row["group"] != "foreign"]
    together = compare(results, results, folder=finished.output)
    assert apart.method.startswith("Intervals treat the two runs as independent")
    assert together.method.startswith("Intervals are from pairs of the same image")
    paired = sum(one.paired for one in mixed.differences)
    assert mixed.method.startswith(f"{paired} of {len(mixed.differences)} intervals are from pairs")
    for comparison in (apart, mixed, together):
        assert comparison.method in unescape(comparison_page(comparison))
        assert comparison_table(comparison).caption == comparison.method
        assert comparison_json(comparison)["method"] == comparison.method


def test_nothing_in_common_is_refused(results: dict[str, Any]) -> None:
    other = deepcopy(results)
    for row in other["rows"]:
        row["seed"] = 7
    with pytest.raises(EvaluationError, match="share no row"):
        compare(results, other)


def test_results_are_read_from_a_folder_or_a_file(finished: Finished) -> None:
    found = load_results(finished.output)
    assert found == load_results(finished.output / "results.json")
    assert found.folder == finished.output
    assert found.content["rows"] == json.loads(json.dumps(finished.results["rows"]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "not an evaluation"),
        ('{"rows": []}', "not an evaluation"),
        ('{"schema_version": "1"}', "not an evaluation"),
        ("[" * 10**5, "not an evaluation's results: nested too deeply"),
        ('{"schema_version": 0}', "schema version 0; this version of lgm-guard reads 1: run lgm evaluate again"),
        ('{"schema_version": 2}', "schema version 2; this version of lgm-guard reads 1: update lgm-guard"),
        ('{"schema_version": 1}', "bundle: Field required"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(EvaluationError, match=words):
        load_results(tmp_path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_results(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": None}, "rows: Input should be a valid list"),
        ({"rows": ["fgsm"]}, r"rows\.0: Input should be a valid dictionary"),
        ({"bundle": None}, "bundle: Input should be a valid dictionary"),
        ({"checks": None}, "checks: Input should be a valid list"),
        ({"data": {}}, r"data\.name: Field required"),
    ],
)
def test_results_that_are_incomplete_are_refused_by_name(
    changes: dict[str, Any], words: str, results: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({**results, **changes}))
    with pytest.raises(EvaluationError, match=rf"results\.json: {words}"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auroc": "0.9"}, r"rows\.1\.auroc: Input should be a valid number"),
        ({"auroc": 0.9, "auroc_interval": None}, r"rows\.1: .*auroc has no auroc_interval"),
        ({"sr_at_5": 1.5}, r"rows\.1\.sr_at_5: .*less than or equal to 1"),
        ({"tpr_at_fpr_5": float("nan")}, r"rows\.1\.tpr_at_fpr_5: Input should be a finite number"),
        ({"eps": [0.1]}, r"rows\.1\.eps: Input should be a valid number"),
        ({"seed": True}, r"rows\.1\.seed: Input should be a valid integer"),
    ],
)
def test_rows_that_are_odd_are_refused_by_name(
    changes: dict[str, Any], words: str, results: dict[str, Any], tmp_path: Path
) -> None:
    results["rows"][1] |= changes
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(EvaluationError, match=words):
        load_results(tmp_path)


def test_whatever_a_comparison_uses_of_a_row_must_be_there(results: dict[str, Any], tmp_path: Path) -> None:
    used = {*CELL, *TASK, *TITLES, *SHARES.values(), "auroc_interval"}
    for name in used:
        rows = [{key: value for key, value in results["rows"][0].items() if key != name}]
        (tmp_path / "results.json").write_text(json.dumps({**results, "rows": rows}))
        with pytest.raises(EvaluationError, match=rf"rows\.0\.{name}: Field required"):
            load_results(tmp_path)


def test_the_page_stands_alone_and_escapes(results: dict[str, Any]) -> None:
    other = deepcopy(results)
    other["bundle"]["name"] = "<script>evil</script>"
    comparison = compare(results, other)
    html = comparison_page(comparison)
    page = Page(html)
    assert (page.open, page.faults) == ([], [])
    assert "script" not in page.names
    assert "http" not in html
    assert page.names.count("tr") == 1 + len(comparison.differences)
    json.dumps(comparison_json(comparison), allow_nan=False)
