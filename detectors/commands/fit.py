"""lgm fit: a finished checkpoint -> a bundle."""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from detectors.bundle import check_vacant, save_bundle
from detectors.card import write_card
from detectors.commands.options import Data, DataDirectory, Device, choose_data, listed, progress_bar
from detectors.fitting import Fitted, fit_screener, unused_test_images
from detectors.known import DEFAULT_DETECTORS, KNOWN_DETECTORS, check_names
from detectors.manifest import DataSplit
from detectors.measuring import OF_THE_TEST_SET, Measured, abnormal_images, check_abnormal, foreign_images, measure
from detectors.screener import Screener
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import DataConfig
from model.fields import MAX_SEED
from model.train import select_device

NUM_REFERENCE_IMAGES = 16


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
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the images drawn for fitting and of what is trained.")
    ] = 0,
    device: Device = "cpu",
) -> None:
    """Fit detectors on clean images, calibrate them on others, measure them, and write a bundle."""
    check_vacant(output)
    deciding, further = listed("--detectors", detectors), listed("--beside", beside)
    check_names([*deciding, *further])
    for kind in abnormal or ():
        check_abnormal(kind)
    trained = load_checkpoint(checkpoint)
    chosen = choose_data(trained.config.data, data, data_dir)
    image_format = trained.image_format
    foreign = {  # before anything is fitted: they may be missing, or of another shape
        kind: foreign_images(kind, chosen, image_format) for kind in abnormal or () if kind not in OF_THE_TEST_SET
    }
    fitted = fit_screener(
        trained,
        chosen,
        false_alarm_rate=false_alarm_rate,
        name=name or trained.config.name,
        device=select_device(device),
        detectors=deciding,
        beside=further,
        seed=seed,
    )
    test = unused_test_images(fitted.splits, trained)
    unlike = {
        kind: foreign[kind] if kind in foreign else abnormal_images(kind, chosen, test, image_format)
        for kind in abnormal or ()
    }
    with progress_bar("measuring") as progress:
        measured = measure(fitted.screener, test, unlike, progress)
    num_left_out = len(fitted.splits.test) - len(test)
    saved = _save(fitted._replace(splits=replace(fitted.splits, test=test)), output, trained, measured, chosen)
    typer.echo(f"{output}: {_summary(saved, measured, false_alarm_rate)}")
    if num_left_out:
        typer.echo(f"left out: {num_left_out} more test images, which are among those that something was fitted on")


def _save(fitted: Fitted, output: Path, trained: Checkpoint, measured: Measured, data: DataConfig) -> Screener:
    command = shlex.join(["lgm", *sys.argv[1:]])
    step = max(1, len(fitted.calibration) // NUM_REFERENCE_IMAGES)
    return save_bundle(
        fitted.screener,
        output,
        network=trained.config.network,
        mixture=trained.config.mixture,
        reference_images=fitted.calibration.images[::step][:NUM_REFERENCE_IMAGES],
        split_digests={"calibration": fitted.calibration.digest(), "test": fitted.splits.test.digest()},
        measured=asdict(measured),
        card=write_card(trained, measured, screener=fitted.screener, commands=[trained.command, command]),
        data=DataSplit(name=data.name, split_seed=data.split_seed, left_out=data.left_out),
    )


def _summary(saved: Screener, measured: Measured, promised: float) -> str:
    alarms = measured.false_alarms
    return (
        f"{saved.name} {saved.version}, accuracy {measured.accuracy:.4f}, flagged {alarms.share:.4f} "
        f"[{alarms.low:.4f}, {alarms.high:.4f}] of {alarms.num_images} clean test images, {promised:g} promised"
    )
