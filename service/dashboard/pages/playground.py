"""Attack an image and watch label, likelihood and verdict change with eps."""

import asyncio
import base64
import binascii
from collections.abc import Callable
from html import escape
from pathlib import Path

from nicegui import ui
from nicegui.events import GenericEventArguments

from service.client.answers import Model
from service.client.errors import ClientError
from service.dashboard import words
from service.dashboard.charts import plane
from service.dashboard.findings import MAX_FILE_BYTES, MAX_STEPS, Experiment, Finding, Judged, Sample
from service.dashboard.laboratory import ExperimentError
from service.dashboard.login import STATIC
from service.dashboard.markup import RIGHT, card, quiet, table, tag
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State

MOST_EPS = 0.3
EPS_STEP = 0.005
FIRST_EPS = 0.0
FIRST_STEPS = 10
FURTHER_SAMPLES = Path(__file__).parents[1] / "samples"
DATA_URL = ";base64,"
MARKS = (
    '<ul class="legend"><li><i class="spot good"></i>clean</li><li><i class="spot square bad"></i>attacked</li></ul>'
)
ATTACKS = {"fgsm": "FGSM: one step", "bim": "BIM: several small steps"}


def register(state: State) -> None:
    add_page(state, "/playground", build)


async def build(tab: Tab) -> None:
    html(
        '<h1>Playground</h1><p class="quiet">What an attack that knows the network does to one image.</p>',
        classes="title",
    )
    bundle, note = await _bundle(tab.state, tab.session.key)
    if note:
        html(f'<p class="banner warn">{escape(note)}</p>')
    if bundle is None:
        return
    ui.add_head_html(f'<script defer src="{STATIC}draw.js"></script>')
    with element("div") as place:
        html('<div class="empty" role="status">Loading the network …</div>')
    ui.timer(0, lambda: _fill(tab, bundle, place), once=True)  # the page does not wait for it


async def _fill(tab: Tab, bundle: Path, place: ui.element) -> None:
    try:
        samples = [*await tab.state.laboratory.samples(bundle), *_further()]
    except ExperimentError as error:
        place.clear()
        with place:
            html(f'<p class="fault" role="alert">{escape(str(error))}</p>')
        return
    bench = Bench(tab, bundle, samples[0].image)
    place.clear()
    with place, element("div", "lab"):
        with element("div", "stack"):
            _pictures(bench, samples)
            _controls(bench)
        bench.place()
    await bench.update()


async def _bundle(state: State, key: str | None) -> tuple[Path | None, str]:
    """The bundle to attack, and what is to be said of it: best the one that answers."""
    try:
        model = Model.read((await state.service.json("/readyz", key=key))["model"])
    except (ClientError, KeyError):
        model = None
    own = None if model is None else state.laboratory.bundle_of(model.name, model.version)
    if own is not None:
        return own, ""
    other = state.laboratory.first_bundle()
    if other is None:
        return None, "No bundle lies beside this page, so there is nothing to attack: start it with --bundle FOLDER."
    serves = (
        "The service is not ready"
        if model is None
        else f"{model.name} {model.version} answers, and does not lie here"
    )
    return other, f"{serves}; what is attacked here is {other.name}."


def _further() -> list[Sample]:
    """Images of nothing that the network knows."""
    files = sorted(FURTHER_SAMPLES.glob("*.png"))
    return [
        Sample(label=file.stem.replace("-", " "), image=base64.b64encode(file.read_bytes()).decode())
        for file in files
    ]


class Bench:
    """What is being tried in one tab, and where it is shown. While an experiment runs only the latest wish waits."""

    def __init__(self, tab: Tab, bundle: Path, image: str):
        self._laboratory = tab.state.laboratory
        self.experiment = Experiment(bundle=bundle, image=image, eps=FIRST_EPS, steps=FIRST_STEPS)
        self._shown: Experiment | None = None
        self._busy = False

    def place(self) -> None:
        with element("div", "stack"):
            self._fault = html("", classes="fault").props("role=alert")
            self._verdict = html("", classes="card").props("role=status")
            self._images = html("", classes="card")
            with element("div", "grid wide"):
                self._plane = html("", classes="card")
                self._table = html("", classes="card")

    def change(self, **wish: object) -> asyncio.Task[None]:
        self.experiment = self.experiment.model_copy(update=wish)
        return asyncio.create_task(self.update())

    async def update(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._shown != self.experiment:
                self._shown = self.experiment
                await self._perform(self.experiment)
        finally:
            self._busy = False

    async def _perform(self, experiment: Experiment) -> None:
        try:
            finding = await self._laboratory.perform(experiment)
        except ExperimentError as error:
            self._fault.content = escape(str(error))
            return
        self._fault.content = ""
        self._verdict.content = verdict(finding, experiment)
        self._images.content = images(finding)
        self._plane.content = picture(finding)
        self._table.content = said(finding)

    def refuse(self, reason: str) -> None:
        self._fault.content = escape(reason)

    def take(self, data_url: str) -> None:
        """An image that the browser sends."""
        _, _, encoded = data_url.partition(DATA_URL)
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return self.refuse("this is no image file")
        if not 0 < len(data) <= MAX_FILE_BYTES:
            return self.refuse(f"an image file may take up to {words.size(MAX_FILE_BYTES)}")
        self.change(image=encoded)


def _pictures(bench: Bench, samples: list[Sample]) -> None:
    with element("section", "card stack", **{"aria-label": "Image"}):
        html('<div class="head"><h2>Image</h2></div>')
        with element("div", "samples"):
            for sample in samples:
                _sample(bench, sample)
        html(
            '<h3>Draw one</h3><canvas data-draw width="196" height="196" role="img" '
            'aria-label="Canvas to draw on with a pointer; files can be chosen below instead"></canvas>'
            '<p><button type="button" data-wipe>Wipe</button></p>'
            '<label for="file">or choose a file</label>'
            '<input id="file" type="file" data-image accept="image/png,image/jpeg,image/bmp,image/gif,image/webp">',
            classes="stack",
        )
    ui.on("drawn", lambda event: bench.take(str(event.args)))
    ui.on("uploaded", lambda event: bench.take(str(event.args)))


def _sample(bench: Bench, sample: Sample) -> None:
    button = ui.element("button").props("type=button").on("click", lambda: bench.change(image=sample.image))
    button.props.update({"aria-label": f"Sample: {sample.label}", "title": sample.label})
    with button:
        html(_image(sample.image, ""), tag="span")


def _controls(bench: Bench) -> None:
    with element("section", "card stack", **{"aria-label": "Attack"}):
        html('<div class="head"><h2>Attack</h2></div>')
        html('<label for="attack">Method</label>')
        with element("select", id="attack") as select:
            for value, name in ATTACKS.items():
                option = ui.element("option")
                option.props.update({"value": value})
                with option:
                    html(name, tag="span")
        steps = _slider("steps", 1, MAX_STEPS, 1, FIRST_STEPS, lambda value: f"{value:.0f} steps", bench)
        steps.set_visibility(False)
        _slider(
            "eps",
            0,
            MOST_EPS,
            EPS_STEP,
            FIRST_EPS,
            lambda value: f"eps {value:.3f}, {255 * value:.0f} of 255 grey levels",
            bench,
        )
        html(
            quiet(
                "No pixel changes by more than eps. Each step leads away from the class that the image is taken for."
            )
        )

    def choose(event: GenericEventArguments) -> None:
        steps.set_visibility(event.args == "bim")
        if event.args in ATTACKS:
            bench.change(attack=event.args)

    select.on("change", choose, js_handler="(event) => emit(event.target.value)")


def _slider(
    name: str, low: float, high: float, step: float, value: float, told: Callable[[float], str], bench: Bench
) -> ui.element:
    with element("div") as box:
        text = html(f'<label for="{name}">{told(value)}</label>')
        with element(
            "input", id=name, type="range", min=str(low), max=str(high), step=str(step), **{"^value": str(value)}
        ) as made:
            pass

    def move(event: GenericEventArguments) -> None:
        wished = min(high, max(low, float(event.args)))
        text.content = f'<label for="{name}">{told(wished)}</label>'
        bench.change(**{name: round(wished) if name == "steps" else wished})

    made.on("input", move, throttle=0.05, js_handler="(event) => emit(event.target.value)")
    return box


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
    moved = "" if experiment.eps == 0 else f" · likelihood {words.nats(drop, signed=True)}"
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
        f"<figure>{_image(data, alt)}<figcaption>{escape(caption)}</figcaption></figure>"
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
    drawn = table((("", ""), ("clean", RIGHT), ("attacked", RIGHT)), rows, label="What is said of it")
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


def _image(data: str, alt: str) -> str:
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
