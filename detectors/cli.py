"""lgm fit, lgm screen, lgm describe, lgm export, lgm evaluate, lgm compare, lgm verify."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from detectors import bulk
from detectors.bundle import MANIFEST, check_vacant, load_bundle, load_manifest, save_bundle
from detectors.card import write_card
from detectors.fitting import abnormal_images, check_abnormal, fit_screener, measure
from detectors.known import DEFAULT_DETECTORS, KNOWN_DETECTORS, check_names
from detectors.screener import Screener
from model.checkpoint import load_checkpoint
from model.config import DataConfig, dump_config, parse_data_config
from model.data import load_splits, to_unit
from model.errors import ConfigurationError
from model.train import select_device

app = typer.Typer()

Data = Annotated[
    str | None, typer.Option("--data", help="mnist, fashion-mnist, cifar10, cifar100, digits, image-folder.")
]
DataDirectory = Annotated[Path | None, typer.Option("--data-dir", help="Its folder; $LGM_DATA_DIR by default.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]

NUM_REFERENCE_IMAGES = 16


@app.command()
def fit(
    checkpoint: Annotated[Path, typer.Argument(help="A finished checkpoint or its run's folder.")],
    output: Annotated[Path, typer.Option(help="Folder of the bundle; must be empty or absent.")],
    data: Data = None,
    data_dir: DataDirectory = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="Promised share of clean images flagged, in (0, 1).")
    ] = 0.01,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the run's by default.")] = None,
    abnormal: Annotated[
        list[str] | None,
        typer.Option(help="Measure on: noise, inverted, or a data set's name; as often as needed."),
    ] = None,
    detectors: Annotated[
        str, typer.Option(help=f"Those that decide together, of {', '.join(KNOWN_DETECTORS)}.")
    ] = ",".join(DEFAULT_DETECTORS),
    beside: Annotated[str, typer.Option(help="Others, whose evidence stands beside the verdict.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the images drawn for fitting and of what is trained.")] = 0,
    device: Device = "cpu",
) -> None:
    """Fit detectors on clean images, calibrate them on others, measure them, and write a bundle."""
    check_vacant(output)
    deciding, further = _names(detectors), _names(beside)
    check_names([*deciding, *further])
    for kind in abnormal or ():
        check_abnormal(kind)
    trained = load_checkpoint(checkpoint)
    chosen = _data(trained.config.data, data, data_dir)
    screener, splits, calibration = fit_screener(
        trained,
        chosen,
        false_alarm_rate=false_alarm_rate,
        name=name or trained.config.name,
        device=select_device(device),
        detectors=deciding,
        beside=further,
        seed=seed,
    )
    foreign = {kind: abnormal_images(kind, chosen, splits.test, screener.image_format) for kind in abnormal or ()}
    with _progress("measuring") as progress:
        measured = measure(screener, splits.test, foreign, progress)
    step = max(1, len(calibration) // NUM_REFERENCE_IMAGES)
    saved = save_bundle(
        screener,
        output,
        network=trained.config.network,
        mixture=trained.config.mixture,
        reference_images=calibration.images[::step][:NUM_REFERENCE_IMAGES],
        split_digests={"calibration": calibration.digest(), "test": splits.test.digest()},
        measured=asdict(measured),
        card=write_card(
            trained,
            measured,
            screener=screener,
            commands=[trained.command, shlex.join(["lgm", *sys.argv[1:]])],
        ),
    )
    alarms = measured.false_alarms
    typer.echo(
        f"{output}: {saved.name} {saved.version}, accuracy {measured.accuracy:.4f}, flagged {alarms.share:.4f} "
        f"[{alarms.low:.4f}, {alarms.high:.4f}] of {alarms.num_images} clean test images, "
        f"{false_alarm_rate:g} promised"
    )


@app.command()
def screen(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Image files or folders of them; with --engine ray also Parquet files, and URLs."),
    ] = None,
    data: Data = None,
    data_dir: DataDirectory = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge at most so many images.")] = None,
    output: Annotated[
        str | None,
        typer.Option(help="A .csv or .parquet file, standard output by default; with --engine ray a folder or URL."),
    ] = None,
    device: Device = "cpu",
    engine: Annotated[
        str, typer.Option(help="process: this one. ray: many, on many machines; goes on where it was killed.")
    ] = "process",
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="ray: HOST:PORT of a cluster, or auto; by default this machine alone."
        ),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="ray: workers; by default one a processor or GPU.")
    ] = None,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0, help="ray: of each worker, as 0.5; needs --device cuda.")
    ] = 0,
    block_size: Annotated[
        int, typer.Option(min=1, help="ray: images written, and repeated after a kill, at once.")
    ] = 4096,
    image_column: Annotated[str, typer.Option(help="ray: column of Parquet files that holds image files.")] = "image",
) -> None:
    """Judge image files, folders, or the test images of a data set; one row an image."""
    if engine not in {"process", "ray"}:
        raise ConfigurationError(f"engine: {engine!r} is not known; use process or ray")
    if engine == "ray":
        if not paths or not output or data or limit:
            raise ConfigurationError("--engine ray takes paths and --output, and neither --data nor --limit")
        from detectors.distributed.cluster import Workers
        from detectors.distributed.screening import RayOptions, screen_with_ray

        options = RayOptions(
            address=address,
            workers=Workers(num=actors, gpus=gpus_per_actor or float(device != "cpu")),
            block_size=block_size,
            image_column=image_column,
            device=device,
        )
        with _progress("blocks") as progress:
            counts = screen_with_ray(bundle, paths, output, options, progress)
        _tell(counts.num_images, counts.num_flagged, counts.num_failed)
        return
    if bool(paths) == bool(data):
        raise ConfigurationError("name either image files and folders, or a data set with --data")
    target = None if output is None else Path(output)
    bulk.check_output(target)
    screener = load_bundle(bundle, select_device(device))
    if data:
        images = load_splits(_data_for(screener, data, data_dir)).test
        images = images.select(torch.arange(min(limit or len(images), len(images))))
        total, chunks = len(images), bulk.screen_set(screener, images)
    else:
        files = bulk.find_files([Path(path) for path in paths or ()])[:limit]
        total, chunks = len(files), bulk.screen_files(screener, files)
    done = flagged = failed = 0
    with bulk.row_writer(target) as write, _progress("screening") as progress:
        for rows in chunks:
            write(rows)
            done += len(rows)
            flagged += sum(row["flagged"] is True for row in rows)
            failed += sum(row["error"] is not None for row in rows)
            progress(done, total)
    _tell(done, flagged, failed)


@app.command()
def describe(
    path: Annotated[Path, typer.Argument(help="A bundle, a checkpoint or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a bundle or a checkpoint holds: classes, data, configuration, figures."""
    facts = _bundle_facts(path) if (path / MANIFEST).exists() else _checkpoint_facts(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value, indent=1, default=str))
    Console().print(table)


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    output: Annotated[Path, typer.Option(help="Folder of the model repository; must be empty or absent.")],
    format_name: Annotated[str, typer.Option("--format", help="onnx or torch-export.")] = "onnx",
    name: Annotated[str | None, typer.Option(help="Name of the model; the bundle's by default.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most images that Triton may judge at once.")] = 64,
    check_data: Annotated[
        str | None, typer.Option(help="Compare on this data set's test images, not on the bundle's own under noise.")
    ] = None,
    data_dir: DataDirectory = None,
    limit: Annotated[int, typer.Option(min=1, help="Compare on at most so many images.")] = 1000,
) -> None:
    """Write a bundle as one graph (class, probabilities, log-likelihood, p-value, flag) that agrees with it."""
    from detectors.export import agreement, writing  # loads torch.export, which a server never needs

    writing.check(output, format_name)
    screener = load_bundle(bundle)
    if check_data:
        images = to_unit(load_splits(_data_for(screener, check_data, data_dir)).test.images[:limit])
    else:
        images = agreement.sample_images(screener, limit)
    found = writing.export(
        screener,
        output,
        format_name=format_name,
        images=images,
        source=f"{check_data}, test images" if check_data else "reference images, as they are and under noise",
        name=name,
        max_batch_size=max_batch_size,
    )
    typer.echo(f"{output}: {screener.name} {screener.version} as {format_name}; {found.describe()}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def evaluate(context: typer.Context) -> None:
    """Attack a bundle and measure what its flag is worth."""
    # Offline only: a server never loads the evaluation room or torchattacks, so neither is imported above.
    if find_spec("torchattacks") is None:
        raise ConfigurationError("lgm evaluate needs torchattacks: pip install 'lgm-guard[eval]'")
    from detectors.evaluation.cli import app as evaluation

    raise typer.Exit(evaluation(args=context.args, prog_name="lgm evaluate", standalone_mode=False) or 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def compare(context: typer.Context) -> None:
    """Train a network with each of several losses and measure what they are worth."""
    if find_spec("torchattacks") is None:  # offline only, as evaluate
        raise ConfigurationError("lgm compare needs torchattacks: pip install 'lgm-guard[train,eval]'")
    from detectors.comparison.cli import app as comparison

    comparison(args=context.args, prog_name="lgm compare", standalone_mode=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def verify(context: typer.Context) -> None:
    """Verify pairs of images of classes that were never trained on, as LFW's protocol does."""
    if find_spec("torchattacks") is None:  # offline only, as evaluate
        raise ConfigurationError("lgm verify needs the extras of evaluation: pip install 'lgm-guard[train,eval]'")
    from detectors.comparison.verify_cli import app as verification

    verification(args=context.args, prog_name="lgm verify", standalone_mode=False)


def _tell(num_images: int, num_flagged: int, num_failed: int) -> None:
    typer.echo(f"{num_images} images, {num_flagged} flagged, {num_failed} could not be read", err=True)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _bundle_facts(path: Path) -> dict[str, Any]:
    load_bundle(path)  # a bundle that would be refused is not described
    return asdict(load_manifest(path))


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    return {
        "classes": list(checkpoint.class_names),
        "image_shape": list(checkpoint.image_format.shape),
        "parameters": sum(values.numel() for values in checkpoint.network.values()),
        "epochs": f"{checkpoint.epoch} of {checkpoint.config.training.epochs}",
        "test_accuracy": checkpoint.test_accuracy,
        "split_digests": checkpoint.split_digests,
        "last_epoch": checkpoint.history[-1] if checkpoint.history else None,
        "command": checkpoint.command,
        "config": dump_config(checkpoint.config),
    }


def _data(configured: DataConfig | None, name: str | None, directory: Path | None) -> DataConfig:
    if name is None and configured is not None:
        return replace(configured, directory=str(directory)) if directory else configured
    same = configured if configured is not None and configured.name == name else None
    if same is not None:
        return replace(same, directory=str(directory)) if directory else same
    return parse_data_config({"name": name, "directory": None if directory is None else str(directory)})


def _data_for(screener: Screener, name: str, directory: Path | None) -> DataConfig:
    """Folders of images are brought to the bundle's channels, and to its size where it resizes."""
    chosen = _data(None, name, directory)
    if chosen.name != "image-folder":
        return chosen
    channels, height, _ = screener.image_format.shape
    size = height if screener.image_format.resize else None
    return replace(chosen, num_channels=1 if channels == 1 else 3, image_size=size)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
