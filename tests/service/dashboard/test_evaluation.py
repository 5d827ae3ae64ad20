"""What the evaluation page says of a run."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from service.dashboard.pages.evaluation import show
from service.dashboard.runs import Results, Run
from tests.service.dashboard.test_runs import RESULT, ROW

DOUBT = {"name": "modes", "level": "refuse", "message": "outputs <differ> between two passes"}
SOUND = {"name": "gradients", "level": "passed", "message": "none is zero"}


def shown(**given: object) -> str:
    results = Results.model_validate({**RESULT, **given})
    return show(Run(name="first", changed=datetime.now(UTC), has_report=False, results=results))


def test_a_refused_run_says_so_and_why_before_its_figures():
    page = shown(verdict="refused", checks=[SOUND, DOUBT])
    (fault,) = re.findall(r'<p class="fault">(.*?)</p>', page)
    assert fault == "Do not rely on these figures: outputs &lt;differ&gt; between two passes"
    assert page.index("fault") < page.index("<table>")


def test_a_refused_run_without_checks_says_so_too():
    assert "Do not rely on these figures: a self-check refused them" in shown(verdict="refused")


def test_a_run_that_stands_is_not_doubted():
    assert "fault" not in shown(verdict="measured", checks=[SOUND])


def corrupted(severity: int, seed: int) -> dict[str, object]:
    return {**ROW, "attack": "rotation", "group": "corruption", "eps": None, "severity": severity, "seed": seed}


def names(rows: Iterable[dict[str, object]]) -> list[str]:
    heads = re.findall(r'<th scope="row">(.*?)</th>', shown(rows=list(rows)))
    return [re.sub("<.*?>", " ", head).strip() for head in heads]


def test_rows_of_one_attack_are_told_apart_by_what_they_differ_in():
    fgsm = [{**ROW, "group": "attack", "steps": 1, "seed": seed} for seed in (0, 1)]
    bim = [{**ROW, "attack": "bim", "steps": steps, "seed": 0} for steps in (10, 40)]
    assert names([*fgsm, *bim]) == ["fgsm  seed 0", "fgsm  seed 1", "bim  10 steps", "bim  40 steps"]
    assert names(corrupted(severity, seed) for severity in (1, 5) for seed in (0, 1)) == [
        "rotation  severity 1, seed 0",
        "rotation  severity 1, seed 1",
        "rotation  severity 5, seed 0",
        "rotation  severity 5, seed 1",
    ]


def test_what_all_rows_of_an_attack_have_in_common_is_not_told():
    assert names([{**ROW, "steps": 1, "seed": 0}, corrupted(3, 0)]) == ["fgsm", "rotation  severity 3"]


def test_what_is_let_through_is_bad_where_it_should_be_caught():
    missed = {"tpr_at_fpr_1": 0.0}
    for group, is_bad in (("attack", True), ("foreign", True), ("corruption", False)):
        assert ('class="bad"' in shown(rows=[{**ROW, "group": group, **missed}])) == is_bad
