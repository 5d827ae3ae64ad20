"""One kept input as it is shown: small, and in full."""

from html import escape
from typing import Any

from service.dashboard import words
from service.dashboard.findings import Finding
from service.dashboard.markup import RIGHT, card, empty, facts, table, tag
from service.dashboard.options import PREFIX
from service.quarantine.records import State

TITLES = {
    State.NEW: ("new", ""),
    State.IN_REVIEW: ("in review", "warn"),
    State.CONFIRMED_ADVERSARIAL: ("adversarial", "bad"),
    State.ABNORMAL: ("abnormal", "bad"),
    State.FALSE_POSITIVE: ("false positive", "good"),
    State.RELEASED: ("released", "good"),
}
# The key, what it says the input was, and its button.
WHY = {"": "any", "flagged": "flagged", "sampled": "sampled", "all": "kept all"}


def thumbnail(item: dict[str, Any]) -> str:
    title, kind = TITLES[State(item["state"])]
    shot = (
        '<span class="none">no image</span>'
        if item["media_type"] is None
        else f'<img src="{image_url(item)}" alt="" loading="lazy">'
    )
    return (
        f'{shot}<span class="line"><b>{escape(item["label"])}</b>'
        f'<span class="number">{words.p_value(item["p_value"])}</span></span>'
        f"{tag(title, kind)}"
    )


def detail(item: dict[str, Any]) -> str:
    threshold = words.p_value(item["false_alarm_rate"])
    told = {
        "Taken for": f"{item['label']}, with probability {item['probability']:.4f}",
        "p-value": f"{words.p_value(item['p_value'])}; flagged from {threshold} downwards",
        "Log-likelihood": words.nats(item["log_likelihood"]),
        "Judged": item["judged_at"][:19].replace("T", " ") + " UTC",
        "By": f"{item['model_name']} {item['model_version'][:8]}",
        "Sent by": item["principal"],
        "Request": item["request_id"],
        "Kept because": WHY.get(item["why"], item["why"]),
    }
    if item["reviewer"] and item["state"] != State.NEW:  # a review that was taken back is none
        told["Reviewed by"] = item["reviewer"] + (f": {item['reason']}" if item["reason"] else "")
    shot = f'<figure><img src="{image_url(item)}" alt="The input, taken for {escape(item["label"])}"></figure>'
    if item["media_type"] is None:
        shot = empty("The bytes were not kept.")
    known = facts({name: escape(value) for name, value in told.items()})
    head = f'<div class="head"><h2>Input</h2>{tag(*TITLES[State(item["state"])])}</div>'
    return f'{head}<div class="shot">{shot}{known}</div>{evidence(item)}'


def evidence(item: dict[str, Any]) -> str:
    rows = [
        (
            escape(name),
            f"{said['score']:.4g}",
            f'<span class="{"bad" if said["p_value"] <= item["false_alarm_rate"] else ""}">'
            f"{words.p_value(said['p_value'])}</span>",
        )
        for name, said in item["evidence"].items()
    ]
    return table((("Detector", ""), ("score", RIGHT), ("p-value", RIGHT)), rows, label="What each detector says")


def nearest(finding: Finding) -> str:
    told = ", ".join(f"{escape(label)} ({distance:.2f} sigma)" for label, distance in finding.clean.nearest)
    return card("Nearest class means", f"<p>{told}</p>")


def image_url(item: dict[str, Any]) -> str:
    return f"{PREFIX}/kept/{escape(item['id'])}/image"
