"""report.html: one page that stands alone and says what was measured, how, and what it does not show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from detectors.evaluation import page
from detectors.evaluation.misses import best_misses, draw_miss
from detectors.evaluation.parts import FUSED
from detectors.evaluation.plots import draw_alarms, draw_curves, draw_histograms, draw_rocs
from detectors.evaluation.report_tables import checks, figures, worst_cases
from detectors.evaluation.rows import Measured
from detectors.evaluation.table import percent
from detectors.evaluation.verdict import plain_words, verdict_level

Results = Mapping[str, Any]


def write_report(results: Results, measured: Sequence[Measured]) -> str:
    """The whole page as text."""
    bundle = results["bundle"]
    title = f"{bundle['name']} {bundle['version']} on {results['data']['name']}: evaluation"
    return page.page(title, [f"<h1>{escape(title)}</h1>", *_sections(results, measured)])


def _sections(results: Results, measured: Sequence[Measured]) -> Iterator[str]:
    yield _verdict(results)
    yield page.heading("Threat model")
    yield page.facts(_threat_model(results))
    yield page.heading("Figures")
    yield from figures(results)
    yield page.heading("Worst case over all attacks")
    yield from worst_cases(results)
    yield page.heading("Self-checks")
    yield checks(results)
    yield from _plots(results, measured)
    yield page.heading("False alarms by class")
    yield from _alarms(results)
    yield page.heading("Most convincing misses")
    yield from _misses(results, measured)
    yield page.heading("How it was run")
    yield from _settings(results)


def _verdict(results: Results) -> str:
    words = "".join(page.paragraph(sentence) for sentence in plain_words(results))
    return f'<div class="verdict {verdict_level(results)}">{words}</div>'


def _threat_model(results: Results) -> list[tuple[str, str]]:
    settings = results["settings"]
    goal = "any wrong class"
    if settings["targeted"]:
        goal += ", sought by aiming at a chosen one; how many reached it stands beside those judged"
    known = settings["adaptive"]
    return [
        ("goal", f"an image that is classified as {goal}; where the attacker knows the detector, unflagged as well"),
        ("may change", "every pixel, within eps of the clean image in the norm of the attack; images are in [0, 1]"),
        ("knowledge zero", f"the network with its weights, not the detector: {_listed(settings['attacks'])}"),
        ("knowledge full", f"network, detectors and thresholds; seeks the highest p-value: {_listed(known)}"),
        ("no attacker", f"corruptions: {_listed(settings['corruptions'])}; foreign: {_listed(settings['foreign'])}"),
        (
            "thresholds",
            "from the bundle's own clean calibration images alone, fixed before any attack; "
            "no detector saw an attacked image",
        ),
    ]


def _plots(results: Results, measured: Sequence[Measured]) -> Iterator[str]:
    chosen = _largest(measured)
    sections = (
        (
            "Accuracy, flags and what got through against eps",
            "Shares of all attacked images, at the bundle's promise.",
            draw_curves(results["rows"]),
        ),
        (
            "ROC curves",
            "Each attack at its largest eps, each corruption at its greatest severity; dotted: 1 % and 5 %.",
            draw_rocs(chosen),
        ),
        ("Scores of the verdict", "The same images; higher is more suspicious.", draw_histograms(chosen)),
    )
    for title, told, svg in sections:
        if svg:
            yield page.heading(title)
            yield page.paragraph(told, "quiet")
            yield page.plot(svg, title)


def _largest(measured: Sequence[Measured]) -> list[Measured]:
    """Of the first seed, each attack at the largest eps that was asked for, each corruption at its greatest."""
    found: dict[tuple[object, ...], Measured] = {}
    for one in measured:
        task = one.task
        if task.seed == measured[0].task.seed and not task.on_curve:
            found[(task.group, task.name, task.knowledge, task.steps)] = one
    return list(found.values())


def _alarms(results: Results) -> Iterator[str]:
    seed = results["clean"][0]["seed"]
    yield page.paragraph(
        f"Clean test images flagged by the verdict, by the class they are taken for, with exact binomial 99 % "
        f"intervals (seed {seed}), at the bundle's promise and at those that detection is told at.",
        "quiet",
    )
    for found in results["clean"]:
        if found["detector"] == FUSED and found["seed"] == seed:
            title = f"False alarms by class, {percent(found['promise'])} promised"
            yield page.plot(draw_alarms(found, found["promise"]), title, small=True)


def _misses(results: Results, measured: Sequence[Measured]) -> Iterator[str]:
    misses = best_misses(measured)
    if not misses:
        yield page.paragraph("None: no attacked image was misclassified without being flagged.")
        return
    yield page.paragraph(
        "Misclassified and not flagged at the bundle's promise, the least suspicious of each attack first. "
        "The change is drawn around grey, magnified by the factor that is stated.",
        "quiet",
    )
    drawn = "".join(draw_miss(miss, results["bundle"]["labels"]) for miss in misses)
    yield f'<div class="misses">{drawn}</div>'


def _settings(results: Results) -> Iterator[str]:
    yield f"<pre>{escape(results['command'])}</pre>"
    bundle, data, timing = results["bundle"], results["data"], results["timing"]
    ratio = "" if timing["ratio"] is None else f", {timing['ratio']:.2f} × the attacks alone"
    yield page.facts(
        [
            ("bundle", f"{bundle['name']} {bundle['version']} ({bundle['path']})"),
            ("detectors", f"{', '.join(bundle['detectors'])}; the verdict fuses {', '.join(bundle['fused'])}"),
            ("promise", f"at most {percent(bundle['false_alarm_rate'], 2)} of clean images flagged, in every class"),
            ("data", f"{data['name']}, {data['num_a_seed']:,} of {data['num_test']:,} test images for each seed"),
            ("SHA-256 of the test set", data["digest"]),
            ("time", f"{timing['task_seconds']:.0f} s{ratio}; started {timing['started']}"),
            ("hardware", ", ".join(f"{name}: {value}" for name, value in results["hardware"].items())),
            ("versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items())),
        ]
    )
    settings = [(name, _listed(value)) for name, value in results["settings"].items()]
    yield f"<details open><summary>Settings</summary>{page.facts(settings)}</details>"


def _listed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
