"""lgm evaluate."""

import shlex
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from detectors.commands.options import Address, Data, DataDirectory, Device, GpusPerActor, check_engine, listed
from detectors.evaluation.benchmark import Evaluation
from detectors.evaluation.compare import compare as compare_results
from detectors.evaluation.comparison import comparison_json, comparison_page, comparison_table
from detectors.evaluation.inputs import Inputs, load_inputs
from detectors.evaluation.judging import Engine, OneProcess
from detectors.evaluation.parts import check_folder, make_folder, write_json, write_text
from detectors.evaluation.report import write_report
from detectors.evaluation.results import load_results
from detectors.evaluation.settings import EvaluationError, Settings
from detectors.evaluation.stored import Columns
from detectors.evaluation.table import LiveTable, build_table, checks_table, output_console, worth_telling
from detectors.evaluation.verdict import plain_words
from model.folder_lock import alone_in
from model.train import select_device

REPORT = "report.html"
COMPARISON = "comparison"
REFUSED = 3


def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder.")] = None,
    data: Data = None,
    data_dir: DataDirectory = None,
    images: Annotated[
        str | None,
        typer.Option(help="In place of --data: a folder with one folder a class, or Parquet; a path or a URL."),
    ] = None,
    image_column: Annotated[str, typer.Option(help="--images: Parquet's column of image files.")] = "image",
    label_column: Annotated[str, typer.Option(help="--images: its column of class names or indices.")] = "label",
    attacks: Annotated[str, typer.Option(help="Attacks unaware of the detector: fgsm,bim,pgd,square,cw ...")] = "",
    eps: Annotated[str, typer.Option(help="Budgets for images in [0, 1]: 0.1,0.2 or 8/255.")] = "",
    eps_l2: Annotated[str, typer.Option(help="Budgets of attacks with an l2 norm; --eps by default.")] = "",
    steps: Annotated[str, typer.Option(help="Steps along gradients, 10,40 to compare; else each attack's own.")] = "",
    adaptive: Annotated[str, typer.Option(help="Attacks that know the detector: joint,selective-pgd ...")] = "",
    restarts: Annotated[int, typer.Option(help="Restarts of attacks that know the detector.")] = 1,
    corruptions: Annotated[str, typer.Option(help="Corruptions: gaussian-blur,rotation ...")] = "",
    severities: Annotated[str, typer.Option(help="Their severities, 1 to 5.")] = "1,2,3,4,5",
    foreign: Annotated[str, typer.Option(help="Images of no class: noise, inverted, a data set, a folder.")] = "",
    targeted: Annotated[bool, typer.Option("--targeted", help="Attack towards a chosen wrong class.")] = False,
    eps_curve: Annotated[bool, typer.Option("--eps-curve", help="Raise eps until an attack always wins.")] = False,
    limit: Annotated[int | None, typer.Option(help="Test images for each seed, drawn by it; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images attacked at once; bounds memory.")] = 128,
    seeds: Annotated[str, typer.Option(help="Each draws its own images and random starts.")] = "0",
    device: Device = "cpu",
    engine: Annotated[
        str, typer.Option(help="process: this one. ray: many, on many machines; both go on with the same folder.")
    ] = "process",
    address: Address = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="ray: batches at once; by default one a processor or GPU.")
    ] = None,
    gpus_per_actor: GpusPerActor = 0,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Set two runs' folders or results.json side by side.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; an interrupted run goes on in it.")
    ] = None,
) -> None:
    """Attack a bundle and measure what its flag is worth: a table, results.json and report.html.

    With nothing to attack it with: its accuracy and false alarms on clean images, class by class.

    Exit status 3 where the self-checks refuse the figures.
    """
    if compare is not None:
        _compare(*compare, output)
        return
    bundle, named, output = _named(bundle, data, images, output)
    settings = Settings(
        data=named,
        attacks=listed("--attacks", attacks),
        eps=_numbers("--eps", eps),
        eps_l2=_numbers("--eps-l2", eps_l2),
        steps=_integers("--steps", steps),
        adaptive=listed("--adaptive", adaptive),
        restarts=restarts,
        corruptions=listed("--corruptions", corruptions),
        severities=_integers("--severities", severities),
        foreign=listed("--foreign", foreign),
        targeted=targeted,
        curve=eps_curve,
        limit=limit,
        batch_size=batch_size,
        seeds=_integers("--seeds", seeds),
    )
    check_engine(engine)
    here = "cpu" if engine == "ray" else device  # whoever spreads the work may have no GPU
    stored = Columns(image=image_column, label=label_column) if images else None
    inputs = load_inputs(bundle, settings, data_dir=data_dir, stored=stored, device=select_device(here))
    check_folder(output, settings.fingerprint(*inputs.facts))
    if engine == "process":
        _evaluate(inputs, output, OneProcess(inputs.screener))
    else:
        gpus = gpus_per_actor or float(device != "cpu")
        _evaluate_with_ray(inputs, output, bundle, device=device, address=address, actors=actors, gpus=gpus)


def _named(bundle: Path | None, data: str | None, images: str | None, output: Path | None) -> tuple[Path, str, Path]:
    """The bundle, its test images and the output; --compare needs none of them, so none is the parser's to demand."""
    if data and images:
        raise EvaluationError("--data and --images both name the test images; give one of them")
    named = data or images
    if bundle is None or named is None or output is None:
        missing = "a bundle" if bundle is None else "--data (or --images)" if named is None else "--output"
        raise EvaluationError(
            f"{missing} is missing: lgm evaluate BUNDLE --data NAME --attacks fgsm --eps 0.1 --output OUT"
        )
    return bundle, named, output


def _evaluate_with_ray(
    inputs: Inputs, output: Path, bundle: Path, *, device: str, address: str | None, actors: int | None, gpus: float
) -> None:
    from detectors.distributed.cluster import Workers
    from detectors.distributed.evaluating import Attacked, ray_engine

    attacked = Attacked(bundle=bundle.resolve(), version=inputs.manifest.version, device=device)
    with ray_engine(attacked, address, Workers(num=actors, gpus=gpus)) as spread:
        _evaluate(inputs, output, spread)


def _evaluate(inputs: Inputs, output: Path, engine: Engine) -> None:
    command = shlex.join(["lgm", *sys.argv[1:]])
    make_folder(output)
    with alone_in(output):
        with LiveTable() as watcher:
            evaluation = Evaluation(inputs, output, watcher, command=command, engine=engine)
            results = evaluation.run()
        write_text(output / REPORT, write_report(results, evaluation.measured))
    _tell(results, output)


def _tell(results: dict[str, Any], output: Path) -> None:
    console = output_console()
    if results["rows"]:
        console.print(build_table(worth_telling(results["rows"]), width=console.width))
    console.print(checks_table(results["checks"]))
    for sentence in plain_words(results):
        console.print(sentence, markup=False)
    console.print(f"{output / REPORT}", markup=False, soft_wrap=True)
    if results["verdict"] == "refused":
        raise typer.Exit(REFUSED)


def _compare(first: Path, second: Path, output: Path | None) -> None:
    comparison = compare_results(load_results(first), load_results(second))
    console = output_console()
    console.print(comparison_table(comparison))
    for caution in comparison.cautions:
        console.print(caution, markup=False)
    if output is None:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{output} cannot be made: {error.strerror}") from None
    write_json(output / f"{COMPARISON}.json", comparison_json(comparison))
    write_text(output / f"{COMPARISON}.html", comparison_page(comparison))
    console.print(f"{output / COMPARISON}.html", markup=False, soft_wrap=True)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Decimals or fractions."""
    found = []
    for word in listed(option, text):
        try:
            found.append(float(Fraction(word.replace(" ", ""))))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise EvaluationError(f"{option}: {word!r} is not a number; write 0.1,0.2 or 8/255") from None
    return tuple(found)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in listed(option, text))
    except ValueError:
        raise EvaluationError(f"{option}: {text!r} is not a list of whole numbers") from None
