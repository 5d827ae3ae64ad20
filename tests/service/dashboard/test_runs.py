import json
import os

import pytest

from service.dashboard.runs import RESULTS, file_of, find_runs

ROW = {
    "attack": "fgsm",
    "eps": 0.1,
    "norm": "linf",
    "knowledge": "zero",
    "detector": "fused",
    "num_adversarial": 10,
    "num_successful": 5,
    "attacked_accuracy": 0.5,
    "auroc": 0.9,
    "tpr_at_fpr_5": 0.8,
    "tpr_at_fpr_1": 0.7,
}
RESULT = {
    "bundle": {"name": "mnist", "version": "1", "false_alarm_rate": 0.01},
    "data": {"name": "mnist"},
    "rows": [ROW, {**ROW, "detector": "layers"}],
}


@pytest.fixture
def folder(tmp_path):
    for name, content in (("sound", json.dumps(RESULT)), ("broken", "{"), ("other", json.dumps({"bundle": 1}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sound" / "report.html").write_text("<p>report</p>")
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path


def test_runs_are_found_and_a_broken_one_says_why(folder):
    runs = {run.name: run for run in find_runs(folder)}
    assert set(runs) == {"sound", "broken", "other"}
    assert [row.detector for row in runs["sound"].results.verdicts] == ["fused"]
    assert runs["sound"].has_report
    assert runs["broken"].results is None
    assert "JSON" in runs["broken"].fault
    assert "bundle" in runs["other"].fault


def test_of_too_many_runs_the_newest_are_shown(folder, monkeypatch):
    names = [path.name for path in folder.iterdir() if (path / RESULTS).exists()]
    monkeypatch.setattr("service.dashboard.runs.MOST_RUNS", 2)
    for newest_first in (names, names[::-1]):
        for age, name in enumerate(newest_first):
            os.utime(folder / name / RESULTS, (1e9 - age, 1e9 - age))
        assert [run.name for run in find_runs(folder)] == newest_first[:2]


def test_only_a_runs_two_files_are_given(folder):
    assert file_of(folder, "sound", "report.html") == folder / "sound" / "report.html"
    assert file_of(folder, "sound", RESULTS) is not None
    for name, file in (
        ("sound", "../../secret.txt"),
        ("..", RESULTS),
        ("sound/../sound", RESULTS),
        ("empty", RESULTS),
        ("", "secret.txt"),
    ):
        assert file_of(folder, name, file) is None


def test_a_link_that_leads_out_of_the_folder_leads_nowhere(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / RESULTS).write_text("{}")
    (folder / "linked").symlink_to(outside)
    assert file_of(folder, "linked", RESULTS) is None
