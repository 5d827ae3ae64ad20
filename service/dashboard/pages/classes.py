"""Each class: how much of it is flagged, and how likely its images are beside those of the calibration."""

from service.dashboard import words
from service.dashboard.charts import Axis, Box, Dot, axis_to, boxes, dots, legend
from service.dashboard.markup import card, empty
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State
from service.monitoring.snapshot import ClassMonitor, ModelMonitor, Snapshot

NUM_TICKS = 4


def register(state: State) -> None:
    add_page(state, "/classes", build)


def build(tab: Tab) -> None:
    html('<h1>Classes</h1><p class="quiet">The last hour, by predicted class.</p>', classes="title")
    tab.follow()
    with element("div", "grid wide"):
        tab.live(flagged, classes="card")
        tab.live(likelihood, classes="card")
    tab.live(hidden)


def flagged(snapshot: Snapshot) -> str:
    model = snapshot.models[0] if snapshot.models else None
    if model is None or not any(one.flagged.hour.num_images for one in model.classes):
        return card("Flagged share", empty("No images in the last hour."))
    rows = [_dot(one, model) for one in model.classes]
    most = max(model.promised_share * 2, *(row.high for row in rows if row.value is not None))
    chart = dots(
        rows,
        axis=axis_to(min(1.0, most), format=words.percent),
        mark=model.promised_share,
        label="Flagged share of each class with its interval, beside the promise.",
    )
    marks = legend(
        ("box", "share and 95 % interval"), ("promise", f"promised: {words.percent(model.promised_share)} at most")
    )
    return card("Flagged share", chart + marks, unit="of the class's images")


def _dot(one: ClassMonitor, model: ModelMonitor) -> Dot:
    share = one.flagged.hour
    said = f"{words.percent(share.share)} of {words.count(share.num_images)}" if share.num_images else "no images"
    kind = "bad" if share.num_images and share.low > model.promised_share else ""
    return Dot(name=one.label, value=share.share, low=share.low, high=share.high, said=said, kind=kind)


def likelihood(snapshot: Snapshot) -> str:
    model = snapshot.models[0] if snapshot.models else None
    known = [one.log_likelihood for one in model.classes] if model else []
    values = [value for one in known for quantiles in (one.live, one.calibration) for value in quantiles or ()]
    if model is None or not values:
        return card("Log-likelihood", empty("Nothing is known of likelihoods yet."))
    rows = [
        Box(
            name=one.label,
            live=one.log_likelihood.live,
            calibration=one.log_likelihood.calibration,
            said="no images"
            if one.log_likelihood.live is None
            else words.moved_nats(one.log_likelihood.median_shift),
        )
        for one in model.classes
    ]
    chart = boxes(
        rows, axis=_axis(min(values), max(values)), label="Log-likelihood of each class beside the calibration's."
    )
    marks = legend(("box", "the last hour"), ("box quiet", "calibration"))
    levels = ", ".join(f"{100 * level:.0f}" for level in known[0].levels)
    note = f'<p class="quiet small">Quantiles at {levels} %. On the right how far the median has moved.</p>'
    return card("Log-likelihood", chart + marks + note, unit="nats; likelier on the right")


def _axis(low: float, high: float) -> Axis:
    steps = axis_to(max(high - low, 1e-3), format=words.short, num_ticks=NUM_TICKS).ticks
    step = steps[1]
    start = step * (low // step)
    ticks = tuple(
        round(start + step * number, 6) for number in range(len(steps) + 1) if start + step * (number - 1) < high
    )
    return Axis(low=ticks[0], high=ticks[-1], ticks=ticks, format=words.short)


def hidden(snapshot: Snapshot) -> str:
    model = snapshot.models[0] if snapshot.models else None
    if model is None or model.num_classes <= len(model.classes):
        return ""
    return (
        f'<p class="quiet">Shown are the {len(model.classes)} classes with most images, of {model.num_classes}.</p>'
    )
