"""deploy/THREATS.md claims nothing that no test shows."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "deploy" / "THREATS.md"
TEXT = PAGE.read_text(encoding="utf-8")
DEFENDED = [line for line in TEXT.split("## Defended")[1].split("\n\n")[1].splitlines()[2:] if line.startswith("| ")]


@pytest.mark.parametrize("line", DEFENDED)
def test_every_defence_names_a_test_that_is_there(line):
    path, _, name = line.rstrip("| ").rsplit("`", 2)[1].partition("::")
    source = (REPOSITORY / path).read_text(encoding="utf-8")
    assert re.search(rf"def {name or 'test_'}", source)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)#([a-z0-9-]+)\)", TEXT)
    assert len(links) == 2
    for path, anchor in links:
        headings = re.findall(r"^#+ (.+)$", (PAGE.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
