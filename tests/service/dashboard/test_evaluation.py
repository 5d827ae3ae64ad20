"""What the evaluation page says of a run."""

import re
from datetime import UTC, datetime

from service.dashboard.pages.evaluation import show
from service.dashboard.runs import Results, Run
from tests.service.dashboard.test_runs import RESULT

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
