"""Attack an image and watch label, likelihood and verdict change with eps."""

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path

from nicegui import ui
from nicegui.events import GenericEventArguments

from service.client.answers import Model
from service.client.errors import ClientError
from service.dashboard.findings import MAX_STEPS, Sample
from service.dashboard.laboratory import ExperimentError
from service.dashboard.login import STATIC
from service.dashboard.markup import quiet
from service.dashboard.pages.bench import FIRST_STEPS, Bench
from service.dashboard.pages.finding import picture_of
from service.dashboard.shell import Tab, add_page, element, html
from service.dashboard.state import State

MOST_EPS = 0.3
EPS_STEP = 0.005
FURTHER_SAMPLES = Path(__file__).parents[1] / "samples"
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
        html(picture_of(sample.image, ""), tag="span")


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
            0,
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
