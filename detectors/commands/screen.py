"""lgm screen: files, folders or a data set -> a row each, in this process or over Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from detectors import bulk
from detectors.bulk import Counts, Row
from detectors.bundle import load_bundle
from detectors.commands.options import (
    Address,
    Bundle,
    Data,
    DataDirectory,
    Device,
    GpusPerActor,
    check_engine,
    data_for,
    progress_bar,
)
from detectors.manifest import load_manifest
from detectors.screener import Screener
from model.config import DataConfig
from model.data import load_splits
from model.errors import ConfigurationError
from model.image_files import check_named
from model.train import select_device


def screen(
    bundle: Bundle,
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
    address: Address = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="ray: workers; by default one a processor or GPU.")
    ] = None,
    gpus_per_actor: GpusPerActor = 0,
    block_size: Annotated[
        int, typer.Option(min=1, help="ray: images written, and repeated after a kill, at once.")
    ] = 4096,
    image_column: Annotated[str, typer.Option(help="ray: column of Parquet files that holds image files.")] = "image",
) -> None:
    """Judge image files, folders, or the test images of a data set; one row an image."""
    check_engine(engine)
    check_named(paths or [])
    if engine == "process":
        counts = _screen_here(bundle, paths or [], data, data_dir, limit, output, device)
    else:
        if not paths or not output or data or limit:
            raise ConfigurationError("--engine ray takes paths and --output, and neither --data nor --limit")
        from detectors.distributed.cluster import Workers, check_ray  # only now: it needs an extra
        from detectors.distributed.screening import RayOptions, screen_with_ray

        check_ray()
        options = RayOptions(
            address=address,
            workers=Workers(num=actors, gpus=gpus_per_actor or float(device != "cpu")),
            block_size=block_size,
            image_column=image_column,
            device=device,
        )
        with progress_bar("blocks") as progress:
            counts = screen_with_ray(bundle, paths, output, options, progress)
    told = f"{counts.num_images} images, {counts.num_flagged} flagged, {counts.num_failed} could not be read"
    typer.echo(told, err=True)
    if 0 < counts.num_images == counts.num_failed:
        raise typer.Exit(1)


def _screen_here(
    bundle: Path,
    paths: list[str],
    data: str | None,
    data_dir: Path | None,
    limit: int | None,
    output: str | None,
    device: str,
) -> Counts:
    if bool(paths) == bool(data):
        raise ConfigurationError("name either image files and folders, or a data set with --data")
    target = None if output is None else Path(output)
    bulk.check_output(target)
    screener = load_bundle(bundle, select_device(device))
    if data:
        total, chunks = _of_set(screener, data_for(load_manifest(bundle), data, data_dir), limit)
    else:
        total, chunks = _of_files(screener, paths, limit)
    counts = Counts()
    with bulk.row_writer(target) as write, progress_bar("screening") as progress:
        for rows in chunks:
            write(rows)
            counts += Counts.of(rows)
            progress(counts.num_images, total)
    return counts


def _of_set(screener: Screener, data: DataConfig, limit: int | None) -> tuple[int, Iterator[list[Row]]]:
    images = load_splits(data, screener.image_format).test
    images = images.select(torch.arange(min(limit or len(images), len(images))))
    return len(images), bulk.screen_set(screener, images)


def _of_files(screener: Screener, paths: list[str], limit: int | None) -> tuple[int, Iterator[list[Row]]]:
    for path in paths:
        if path.endswith(".parquet"):
            raise ConfigurationError(
                f"{path}: Parquet files are judged with --engine ray; --image-column names a column"
            )
    files = bulk.find_files([Path(path) for path in paths])[:limit]
    return len(files), bulk.screen_files(screener, files)
