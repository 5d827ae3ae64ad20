"""Is the traffic normal? One sentence, then what it rests on."""

from collections.abc import Sequence
from html import escape
from math import sqrt

from service.dashboard import words
from service.dashboard.charts import Line, axis_to, histogram, legend, series
from service.dashboard.markup import banner, card, empty
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State
from service.monitoring.snapshot import FlaggedShare, ModelMonitor, Snapshot, Traffic

KINDS = {"no traffic": "", "normal": "good", "warning": "warn", "alarm": "bad"}
ROLLING_SECONDS = 300.0  # a share of ten seconds' images says little
Z = 1.96
SLOW_SECONDS = 2.0  # from here on an axis is in seconds
Values = Sequence[float | None]


def register(state: State) -> None:
    add_page(state, "/", build)


def build(tab: Tab) -> None:
    html("<h1>Overview</h1>", classes="title")
    tab.live(summary, role="status")
    tab.live(figures)
    with element("div", "grid"):
        for render in (traffic, flagged, p_values, latency, queue, errors):
            tab.live(render, classes="card")


def summary(snapshot: Snapshot) -> str:
    return banner(snapshot.summary, KINDS[snapshot.level])


def figures(snapshot: Snapshot) -> str:
    lately, model = snapshot.lately, _main(snapshot)
    told = [
        (
            "Images",
            f"{words.rate(lately.images_per_second)} /s",
            f"{words.rate(lately.requests_per_second)} requests/s",
        ),
        *_flagged_figure(model),
        (
            "Latency, 95 % within",
            words.milliseconds(lately.latency_p95_seconds),
            f"half within {words.milliseconds(lately.latency_p50_seconds)}",
        ),
        (
            "Queue",
            words.count(snapshot.traffic.queue_depth[-1] if snapshot.traffic.queue_depth else 0),
            f"of {words.count(snapshot.queue_capacity)} places",
        ),
        ("Server errors", words.percent(lately.error_share), f"{words.percent(lately.refused_share)} refused"),
        *_workers_figure(model),
    ]
    parts = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="note">{escape(note)}</dd></div>'
        for name, value, note in told
    )
    return f'<dl class="figures" aria-label="The last five minutes">{parts}</dl>'


def _flagged_figure(model: ModelMonitor | None) -> list[tuple[str, str, str]]:
    if model is None:
        return []
    share = model.flagged.five_minutes
    note = (
        f"{words.percent(share.low)} to {words.percent(share.high)}; promised {words.percent(model.promised_share)}"
    )
    return [
        (
            "Flagged",
            words.percent(share.share),
            note if share.num_images else f"promised {words.percent(model.promised_share)}",
        )
    ]


def _workers_figure(model: ModelMonitor | None) -> list[tuple[str, str, str]]:
    if model is None:
        return []
    return [("Workers up", f"{model.workers_up} of {model.workers_wanted}", f"{model.name} {model.version[:8]}")]


def traffic(snapshot: Snapshot) -> str:
    told = snapshot.traffic
    values = [count / told.bucket_seconds for count in told.images]
    axis = axis_to(max(values, default=0), format=words.short, least=1)
    total = words.count(sum(told.images))
    chart = series(
        [Line(values=values, filled=True)],
        axis=axis,
        along=time_labels(told),
        label=f"Images a second over the last hour; {total} images in all.",
    )
    return card("Traffic", chart, unit="images per second")


def flagged(snapshot: Snapshot) -> str:
    model, told = _main(snapshot), snapshot.traffic
    if model is None or not sum(told.images):
        return card("Flagged share", empty("No images in the last hour."), unit="of images")
    window = max(1, round(ROLLING_SECONDS / told.bucket_seconds))
    shares, low, high = rolling_share(told.flagged, told.images, window)
    most = max(value for value in (*high, model.promised_share) if value is not None)
    chart = series(
        [Line(values=shares)],
        axis=axis_to(most, format=words.percent),
        along=time_labels(told),
        label=f"Flagged share over the last hour beside the promise: {_in_words(model.flagged.hour)}, "
        f"{words.percent(model.promised_share)} promised.",
        band=(low, high),
        promise=model.promised_share,
    )
    marks = legend(
        ("", "over five minutes"),
        ("area", "95 % interval"),
        ("promise", f"promised: {words.percent(model.promised_share)} at most"),
    )
    return card("Flagged share", chart + marks, unit="of images")


def p_values(snapshot: Snapshot) -> str:
    model = _main(snapshot)
    if model is None or not sum(model.p_values.counts):
        return card("p-values", empty("No images in the last hour."), unit="images")
    told = model.p_values
    chart = histogram(
        told.counts,
        told.expected,
        axis=axis_to(max(*told.counts, *told.expected), format=words.short),
        along=((0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1, "1")),
        label=f"Histogram of p-values over the last hour beside that of clean traffic, which is all but level; "
        f"{words.count(told.counts[0])} images in the most suspicious twentieth, "
        f"{words.count(told.expected[0])} expected.",
        first_kind="bad",
    )
    marks = legend(("box", "images, the last hour"), ("promise", "as clean traffic"))
    return card("p-values", chart + marks, unit="images a bin; suspicious on the left")


def latency(snapshot: Snapshot) -> str:
    told = snapshot.traffic
    percentiles = (told.latency_p50_seconds, told.latency_p95_seconds, told.latency_p99_seconds)
    most = max((value for values in percentiles for value in values if value is not None), default=None)
    if most is None:
        return card("Latency", empty("No requests in the last hour."))
    factor, unit = (1, "seconds") if most >= SLOW_SECONDS else (1000, "milliseconds")
    lines = [
        Line(values=_times(factor, values), kind=kind)
        for values, kind in zip(percentiles, ("", "second", "third"), strict=True)
    ]
    chart = series(
        lines,
        axis=axis_to(factor * most, format=words.short),
        along=time_labels(told),
        label="Latency over the last hour; lately 95 % of requests were answered within "
        f"{words.milliseconds(snapshot.lately.latency_p95_seconds)}.",
    )
    marks = legend(("", "half of requests"), ("second", "95 %"), ("third", "99 %"))
    return card("Latency", chart + marks, unit=unit)


def queue(snapshot: Snapshot) -> str:
    told = snapshot.traffic
    chart = series(
        [Line(values=told.queue_depth, filled=True)],
        axis=axis_to(max(told.queue_depth, default=0), format=words.short, least=3),
        along=time_labels(told),
        label=f"Most images waiting over the last hour: {max(told.queue_depth, default=0)} "
        f"of {snapshot.queue_capacity} places.",
    )
    return card("Queue", chart, unit=f"most images waiting, of {words.count(snapshot.queue_capacity)}")


def errors(snapshot: Snapshot) -> str:
    told = snapshot.traffic
    kinds = (told.client_errors, told.refusals, told.server_errors)
    lines = [
        Line(values=[count / told.bucket_seconds for count in counts], kind=kind)
        for counts, kind in zip(kinds, ("", "second", "third"), strict=True)
    ]
    most = max((value for line in lines for value in line.values if value is not None), default=0)
    totals = [words.count(sum(counts)) for counts in kinds]
    chart = series(
        lines,
        axis=axis_to(most, format=words.short, least=1),
        along=time_labels(told),
        label=f"Errors a second over the last hour: {totals[0]} of callers, {totals[1]} refusals, "
        f"{totals[2]} of the server.",
    )
    marks = legend(
        ("", f"bad requests: {totals[0]}"),
        ("second", f"refused: {totals[1]}"),
        ("third", f"server errors: {totals[2]}"),
    )
    return card("Errors", chart + marks, unit="requests per second")


def time_labels(told: Traffic) -> list[tuple[float, str]]:
    """From the oldest bucket to now."""
    seconds = told.bucket_seconds * max(1, len(told.images) - 1)
    return [(0, words.ago(seconds)), (0.5, words.ago(seconds / 2)), (1, "now")]


def rolling_share(flagged_counts: Sequence[int], images: Sequence[int], window: int) -> tuple[Values, Values, Values]:
    """Share, and its interval's ends (Wilson), of the images in each `window` buckets; None without images."""
    ends = [
        _wilson(sum(flagged_counts[max(0, end - window) : end]), sum(images[max(0, end - window) : end]))
        for end in range(1, len(images) + 1)
    ]
    shares, low, high = zip(*ends, strict=True)
    return shares, low, high


def _wilson(successes: int, trials: int) -> tuple[float | None, float | None, float | None]:
    if not trials:
        return None, None, None
    share, squared = successes / trials, Z * Z / trials
    centre = (share + squared / 2) / (1 + squared)
    reach = Z * sqrt(share * (1 - share) / trials + squared / trials / 4) / (1 + squared)
    return share, max(0.0, centre - reach), min(1.0, centre + reach)


def _in_words(share: FlaggedShare) -> str:
    return f"{words.count(share.num_flagged)} of {words.count(share.num_images)} images"


def _times(factor: float, values: Values) -> Values:
    return [None if value is None else factor * value for value in values]


def _main(snapshot: Snapshot) -> ModelMonitor | None:
    return snapshot.models[0] if snapshot.models else None
