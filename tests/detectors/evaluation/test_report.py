import base64
import io
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detectors.evaluation.misses import Miss, best_misses, draw_miss, to_data_url
from detectors.evaluation.report import write_report
from detectors.evaluation.rows import Measured, make_rows
from detectors.evaluation.summaries import over_seeds
from detectors.evaluation.table import area, build_table, cells, percent, worth_telling
from detectors.evaluation.verdict import plain_words
from tests.detectors.evaluation.conftest import Finished

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADING = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}


class Page(HTMLParser):
    """Every element closed in order, every attribute kept."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.names: list[str] = []
        self.words: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def html(finished: Finished) -> str:
    return write_report(finished.results, finished.evaluation.measured)


def test_the_page_is_well_formed(html: str) -> None:
    page = Page(html)
    assert (page.open, page.faults) == ([], [])
    assert html.startswith("<!doctype html>")
    assert page.names.count("html") == page.names.count("body") == page.names.count("h1") == 1


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.names)
    sources = [value for _, name, value in page.attributes if name in LOADING]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_every_part_is_there(html: str, finished: Finished) -> None:
    page = Page(html)
    text = " ".join(page.words)
    for heading in (
        "Threat model",
        "Figures",
        "Worst case over all attacks",
        "Self-checks",
        "ROC curves",
        "Scores of the verdict",
        "Accuracy, flags and what got through against eps",
        "False alarms by class",
        "Most convincing misses",
        "How it was run",
    ):
        assert heading in text
    assert page.names.count("svg") == 5
    assert page.names.count("figure") == min(12, len(best_misses(finished.evaluation.measured))) > 0
    for told in ("lgm evaluate digits", finished.inputs.test.digest(), "torchattacks", "batch_size", "selective-pgd"):
        assert told in text


def test_light_and_dark_come_from_the_page(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "currentColor" in drawings
    assert not re.search(r"#000000|#010203", drawings)


def test_identifiers_of_drawings_are_used_once(html: str) -> None:
    names = [value for tag, name, value in Page(html).attributes if name == "id" and tag not in {"path", "clippath"}]
    assert len(names) == len(set(names))


def test_what_others_named_is_escaped(finished: Finished) -> None:
    evil = "<script>alert('&')</script>"
    results: dict[str, Any] = deepcopy(finished.results)
    results["bundle"]["name"] = results["command"] = evil
    results["bundle"]["labels"] = [evil] * len(results["bundle"]["labels"])
    results["checks"][0]["message"] = evil
    for row in results["rows"]:
        row["attack"] = evil
    for figures in results["clean"]:
        figures["by_class"] = {
            f"{evil}$_{{ {index}": found for index, found in enumerate(figures["by_class"].values())
        }
    measured = [
        replace(one, task=replace(one.task, name=f"{evil}$_{{", group="foreign")) if one.task.name == "noise" else one
        for one in finished.evaluation.measured
    ]
    html = write_report(results, measured)
    page = Page(html)
    assert "script" not in page.names
    assert (page.open, page.faults) == ([], [])
    assert evil in " ".join(page.words)


def test_the_first_sentence_says_whether_to_rely_on_it(finished: Finished) -> None:
    results: dict[str, Any] = deepcopy(finished.results)
    results["checks"] = [{"name": "white box", "level": "passed", "message": ""}]
    assert plain_words(results)[0].startswith("The figures stand")
    results["checks"].append({"name": "more steps", "level": "refuse", "message": "more steps are weaker"})
    assert plain_words(results)[0] == "Do not rely on these figures: more steps are weaker."
    assert 'class="verdict refuse"' in write_report(results, finished.evaluation.measured)


def test_the_words_name_the_worst_attack(finished: Finished) -> None:
    rows = [row for row in finished.results["rows"] if row["detector"] == "fused" and row["knowledge"] == "full"]
    worst = max(rows, key=lambda row: row["sr_at_5"])
    words = " ".join(plain_words(finished.results))
    assert f"{percent(worst['sr_at_5'])} of all attacked images got through" in words
    without: dict[str, Any] = {
        **finished.results,
        "rows": [row for row in finished.results["rows"] if row not in rows],
    }
    assert "No attack that knows the detector was run" in " ".join(plain_words(without))


def test_a_run_that_attacked_nothing_makes_a_page(finished: Finished) -> None:
    results = {**finished.results, "rows": [], "worst_cases": [], "over_seeds": []}
    page = Page(write_report(results, []))
    assert (page.open, page.faults) == ([], [])
    assert "Nothing was attacked" in " ".join(page.words)


def test_several_detectors_stand_side_by_side(finished: Finished) -> None:
    """A second detector whose scores are the verdict's reversed."""
    measured = []
    for one in finished.evaluation.measured:
        doubled = [
            replace(
                part,
                scores=part.scores | {"rival": -part.scores["fused"]},
                p_values=part.p_values | {"rival": 1 - part.p_values["fused"]},
            )
            for part in (one.part, one.clean)
        ]
        measured.append(replace(one, part=doubled[0], clean=doubled[1]))
    rows = [row for one in measured for row in make_rows(one, promise=0.05)]
    page = Page(write_report({**finished.results, "rows": rows, "over_seeds": over_seeds(rows)}, measured))
    text = " ".join(page.words)
    assert "AUROC by detector" in text
    assert "TPR@5% by detector" in text
    fused = {row["attack"]: row for row in rows if row["detector"] == "fused" and row["eps"] in {None, 0.3}}
    rival = {row["attack"]: row for row in rows if row["detector"] == "rival" and row["eps"] in {None, 0.3}}
    assert rival["bim"]["auroc"] == pytest.approx(1 - fused["bim"]["auroc"])
    assert area(rival["bim"]["auroc"]) in text


def test_several_seeds_are_summed_up(finished: Finished) -> None:
    seeds = [{**row, "seed": seed} for seed in (0, 1) for row in finished.results["rows"]]
    text = " ".join(
        Page(
            write_report(
                {**finished.results, "rows": seeds, "over_seeds": over_seeds(seeds)}, finished.evaluation.measured
            )
        ).words
    )
    assert "over the seeds" in text


def test_thumbnails_hold_the_pixels_and_state_the_factor() -> None:
    clean = np.zeros((1, 2, 2), dtype=np.float32)
    attacked = np.array([[[0.0, 0.1], [0.05, 0.0]]], dtype=np.float32)
    miss = Miss(title="bim", clean=clean, attacked=attacked, true_class=0, predicted_class=1, p_value=0.5)
    html = draw_miss(miss, ("cat", "dog"))
    assert "clean: cat" in html
    assert "taken for dog" in html
    assert "change × 5<" in html
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found)))) for found in re.findall(r"base64,([^\"]+)", html)
    ]
    assert pictures[1].tolist() == [[0, 26], [13, 0]]
    assert pictures[2].tolist() == [[128, 255], [191, 128]]


def test_colour_thumbnails_keep_their_channels() -> None:
    image = np.zeros((3, 2, 2), dtype=np.float32)
    image[2] = 1
    pixels = Image.open(io.BytesIO(base64.b64decode(to_data_url(image).split(",")[1])))
    assert (pixels.mode, pixels.getpixel((0, 0))) == ("RGB", (0, 0, 255))


def test_misses_come_first_of_each_attack(finished: Finished) -> None:
    measured: list[Measured] = finished.evaluation.measured
    with_misses = [one for one in measured if one.task.group == "attack" and len(one.part.misses)]
    titles = [miss.title for miss in best_misses(measured)][: len(with_misses)]
    assert len(set(titles)) == len(with_misses)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "100.0 %"), (0.9999, "99.9 %"), (0.0, "0.0 %"), (0.0004, "0.0 %"), (0.123, "12.3 %")],
)
def test_percentages_never_claim_all_by_rounding(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_an_area_is_one_only_where_it_is() -> None:
    assert [area(value) for value in (None, 1.0, 0.99999, 0.5)] == ["–", "1.0000", "0.9999", "0.5000"]


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_the_table_fits_the_terminal_and_keeps_what_matters(finished: Finished, width: int) -> None:
    rows = worth_telling(finished.results["rows"])
    table = build_table(rows, width=width)
    names = [str(column.header) for column in table.columns]
    assert {"attack", "eps", "detector", "AUROC", "TPR@5%", "SR@5"} <= set(names)
    assert ("judged" in names) == (width == 200)
    assert table.row_count == len(rows) == len(finished.results["rows"])
    assert "seed" not in names
    assert cells(rows[0])["eps"] == "0.1"
