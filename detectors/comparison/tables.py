"""tables.md of a comparison: its figures as Markdown, to be carried into a README."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectors.comparison.pictures import TITLES_OF_PICTURES, Picture
from detectors.comparison.summaries import SIGNIFICANT, Ranking, Summary
from detectors.comparison.wording import title_of, told_with_interval


def write_tables(
    results: Mapping[str, Any], summaries: Sequence[Summary], pictures: Mapping[str, Sequence[Picture]]
) -> str:
    """Each experiment: what classifies, what is told from clean images, ranks, pictures, and what diverged."""
    parts = [f"# {results['name']}", f"    {results['command']}"]
    for summary in summaries:
        parts += _experiment(summary, pictures.get(summary.experiment.name, []))
    return "\n\n".join(parts) + "\n"


def _experiment(summary: Summary, pictures: Sequence[Picture]) -> Iterator[str]:
    experiment = summary.experiment
    yield f"## {experiment.title}"
    if experiment.question:
        yield experiment.question
    told_apart = [name for name in summary.figures if _is_detection(name)]
    for names in ([name for name in summary.figures if name not in told_apart], told_apart):
        if names:
            yield table(summary, names)
    yield _legend(summary)
    yield from (_ranks(ranking) for ranking in summary.rankings)
    yield from (f"![{TITLES_OF_PICTURES[picture.kind]}]({picture.name})" for picture in pictures)
    yield from (f"{run}: {message}." for run, message in summary.failed.items())


def table(summary: Summary, names: Sequence[str]) -> str:
    """A row a variant; a star where it differs significantly from the reference."""
    lines = [f"| variant | {' | '.join(map(title_of, names))} |", "| --- |" + " ---: |" * len(names)]
    for variant, figures in summary.variants.items():
        cells = []
        for name in names:
            found = figures.get(name)
            star = " *" if found is not None and found.differs else ""
            cells.append(told_with_interval(name, found) + star)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _legend(summary: Summary) -> str:
    seeds = len(summary.experiment.seeds)
    if seeds == 1:
        return f"One seed ({summary.experiment.seeds[0]}): nothing is said of chance."
    return (
        f"Means of {seeds} seeds ± half of the 95 % t-interval; * differs from {summary.reference} (paired t-test "
        f"over seeds, Holm's correction over variants, p < {SIGNIFICANT})."
    )


def _ranks(ranking: Ranking) -> str:
    ordered = sorted(ranking.ranks.items(), key=lambda pair: pair[1])
    listed = ", ".join(f"{variant} {rank:.1f}" for variant, rank in ordered)
    friedman = "" if ranking.p_value is None else f"; Friedman p = {ranking.p_value:.2g}"
    return (
        f"Mean ranks in {title_of(ranking.figure)}, 1 best: {listed}. Critical difference "
        f"{ranking.critical_difference:.1f}{friedman}."
    )


def _is_detection(name: str) -> bool:
    return name in ("detection", "realised_fpr") or name.endswith(("_auroc", "_tpr_at_fpr_5"))
