"""report.html of a comparison: one page that stands alone, from the parts of the evaluation's."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from detectors.comparison.pictures import TITLES_OF_PICTURES, Picture
from detectors.comparison.planning import FITTED
from detectors.comparison.summaries import SIGNIFICANT, Figure, Summary
from detectors.comparison.wording import title_of, told_with_interval
from detectors.evaluation import page

MEANINGS = [
    ("accuracy", "of the loss's own classifier on test images, without margin or noise"),
    (
        "accuracy of the Gaussians",
        "of argmax p(x, k): for a loss without density, and in rows that say fitted, of diagonal Gaussians fitted to "
        "the training images' features after training",
    ),
    ("calibration error", "expected calibration error of the classifier's softmax, 15 bins"),
    ("scatter within / between", "tr S_w / tr S_b of test features; small: tight classes far apart"),
    (
        "likelihood misfit",
        "Kolmogorov and Smirnov's distance of squared Mahalanobis distances from their chi-squared law; 0: the "
        "features are as the Gaussians say",
    ),
    (
        "AUROC, TPR",
        "clean test images against abnormal ones by -log p(x) alone; the threshold of TPR flags 5 % of the "
        "calibration images; of attacks, only images count that were right before and wrong after",
    ),
    (
        "attacks",
        "FGSM, BIM and others know the network and go through the loss's own classifier; they do not know p(x)",
    ),
]
PLANES = (
    "Test images in the plane of their two features, coloured by class; + and ellipses are the means and two "
    "standard deviations of the class Gaussians; the darker the ground, the higher log p(x), from 30 nats below its "
    "highest on."
)
STATISTICS = (
    "Means over seeds with 95 % t-intervals. Coloured: differs from the reference by a paired t-test over seeds, "
    f"Holm's correction over variants, p < {SIGNIFICANT}. Ranks: 1 is best; mean ranks that differ by less than the "
    "critical difference (Nemenyi) cannot be told apart at 5 %."
)


def write_report(
    results: Mapping[str, Any], summaries: Sequence[Summary], pictures: Mapping[str, Sequence[Picture]]
) -> str:
    """The whole page as text. pictures: by the experiment's name."""
    title = f"{results['name']}: losses compared"
    return page.page(title, [f"<h1>{escape(title)}</h1>", *_sections(results, summaries, pictures)])


def _sections(
    results: Mapping[str, Any], summaries: Sequence[Summary], pictures: Mapping[str, Sequence[Picture]]
) -> Iterator[str]:
    trainings = sum(not row["variant"].endswith(FITTED) for row in results["rows"])
    yield page.paragraph(f"{trainings} trainings of the same network on the same images.", "quiet")
    yield page.facts(MEANINGS)
    for summary in summaries:
        yield page.heading(summary.experiment.title)
        if summary.experiment.question:
            yield page.paragraph(summary.experiment.question)
        drawn = pictures.get(summary.experiment.name, [])
        for picture in drawn:
            if picture.kind == "planes":
                yield page.paragraph(PLANES, "quiet")
                yield page.plot(picture.svg, TITLES_OF_PICTURES[picture.kind])
        yield from experiment_tables(summary)
        for picture in drawn:
            if picture.kind != "planes":
                yield page.plot(picture.svg, TITLES_OF_PICTURES[picture.kind])
    yield page.heading("How it was run")
    yield f"<pre>{escape(results['command'])}</pre>"
    yield page.facts(
        [
            ("abnormal images", ", ".join(f"{name}: {value}" for name, value in results["abnormal"].items())),
            ("hardware", ", ".join(f"{name}: {value}" for name, value in results["hardware"].items())),
            ("versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items())),
        ]
    )
    yield f"<details><summary>Training configuration</summary><pre>{escape(results['training'])}</pre></details>"


def experiment_tables(summary: Summary) -> Iterator[str]:
    """Figures of every variant, then ranks where there are seeds enough, then what diverged."""
    names = summary.figures
    yield page.table(
        ["variant", *map(title_of, names)],
        [
            (_kind(summary, variant), [variant, *_cells(figures, names)])
            for variant, figures in summary.variants.items()
        ],
        numbers=[title_of(name) for name in names],
    )
    if any(figure.low != figure.high for figures in summary.variants.values() for figure in figures.values()):
        yield page.paragraph(f"Reference: {summary.reference}. {STATISTICS}", "quiet")
    for ranking in summary.rankings:
        ordered = sorted(ranking.ranks.items(), key=lambda pair: pair[1])
        listed = ", ".join(f"{variant} {rank:.1f}" for variant, rank in ordered)
        friedman = "" if ranking.p_value is None else f"; Friedman p = {ranking.p_value:.2g}"
        yield page.paragraph(
            f"Mean ranks in {title_of(ranking.figure)}: {listed}. Critical difference "
            f"{ranking.critical_difference:.1f}{friedman}."
        )
    for run, message in summary.failed.items():
        yield page.paragraph(f"{run}: {message}.", "warned")


def _kind(summary: Summary, variant: str) -> str:
    return "main" if variant == summary.reference and len(summary.variants) > 1 else ""


def _cells(figures: Mapping[str, Figure], names: Sequence[str]) -> list[page.Cell]:
    return [_cell(name, figures.get(name)) for name in names]


def _cell(name: str, figure: Figure | None) -> page.Cell:
    text = told_with_interval(name, figure)
    return (text, "warned") if figure is not None and figure.differs else text
