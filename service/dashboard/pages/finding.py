"""What an experiment found, as it is shown."""

from html import escape

from service.dashboard import words
from service.dashboard.charts import plane
from service.dashboard.findings import Experiment, Finding, Judged
from service.dashboard.markup import RIGHT, card, quiet, table, tag

MARKS = (
    '<ul class="legend"><li><i class="spot good"></i>clean</li><li><i class="spot square bad"></i>attacked</li></ul>'
)


def verdict(finding: Finding, experiment: Experiment) -> str:
    clean, attacked = finding.clean, finding.attacked
    if experiment.eps == 0:
        told = f"Taken for {clean.label}"
    elif attacked.label == clean.label:
        told = f"Still taken for {clean.label}"
    else:
        told = f"Was taken for {clean.label}, now for {attacked.label}"
    flagged = tag("flagged", "bad") if attacked.flagged else tag("not flagged", "good")
    drop = attacked.log_likelihood - clean.log_likelihood
    moved = "" if experiment.eps == 0 else f" · likelihood {words.moved_nats(drop)}"
    note = (
        f"p-value {words.p_value(attacked.p_value)}, "
        f"flagged from {words.p_value(finding.false_alarm_rate)} downwards{moved}"
    )
    return f'<div class="verdict"><span>{escape(told)}</span>{flagged}</div><p class="quiet small">{note}</p>'


def images(finding: Finding) -> str:
    magnified = (
        "none" if finding.magnification is None else f"{finding.magnification:.3g} times magnified; grey is none"
    )
    shown = (
        (finding.image, "The image", f"Image, taken for {finding.clean.label}"),
        (finding.perturbation, f"What is added, {magnified}", "Perturbation"),
        (finding.attacked_image, "The attacked image", f"Attacked image, taken for {finding.attacked.label}"),
    )
    figures = "".join(
        f"<figure>{picture_of(data, alt)}<figcaption>{escape(caption)}</figcaption></figure>"
        for data, caption, alt in shown
    )
    return card("Images", f'<div class="trio">{figures}</div>')


def picture(finding: Finding) -> str:
    clean, attacked = finding.clean, finding.attacked
    drawn = plane(
        finding.classes,
        finding.anchors,
        clean,
        attacked,
        label=f"Class Gaussians and the image's features. Clean nearest to class {clean.nearest[0][0]}, "
        f"attacked nearest to class {attacked.nearest[0][0]}.",
    )
    named = " and ".join([", ".join(finding.anchors[:-1]), finding.anchors[-1]])
    note = (
        f"The plane through the means of {named}, out of {finding.num_features} dimensions, with one and two sigma "
        f"of each class as seen in it; other classes are faint. The attacked features lie "
        f"{attacked.distance_from_plane:.1f} beside the plane."
    )
    return card(
        "Among the class Gaussians",
        drawn + MARKS + quiet(note),
        unit="sigma of features",
    )


def said(finding: Finding) -> str:
    clean, attacked = _told(finding.clean), _told(finding.attacked)
    rows = [(escape(name), escape(value), escape(attacked[name])) for name, value in clean.items()]
    drawn = table((("figure", ""), ("clean", RIGHT), ("attacked", RIGHT)), rows, label="What is said of it")
    return card("What is said of it", drawn, unit=f"{finding.model} {finding.version[:8]}")


def _told(judged: Judged) -> dict[str, str]:
    near, distance = judged.nearest[0]
    return {
        "Label": judged.label,
        "Probability": f"{judged.probability:.4f}",
        "Log-likelihood": words.nats(judged.log_likelihood),
        "p-value": words.p_value(judged.p_value),
        "Verdict": "flagged" if judged.flagged else "not flagged",
        **{f"p-value of {name}": words.p_value(said.p_value) for name, said in judged.evidence.items()},
        "Nearest class mean": f"{near}, {distance:.2f} away",
    }


def picture_of(data: str, alt: str) -> str:
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
