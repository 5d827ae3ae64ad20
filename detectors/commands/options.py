"""What several commands take, and how they show that they go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detectors.manifest import Manifest
from model.config import DataConfig, parse_data_config
from model.errors import ConfigurationError

Bundle = Annotated[Path, typer.Argument(help="A bundle's folder.")]
Data = Annotated[
    str | None, typer.Option("--data", help="mnist, fashion-mnist, cifar10, cifar100, digits, image-folder.")
]
DataDirectory = Annotated[Path | None, typer.Option("--data-dir", help="Its folder; $LGM_DATA_DIR by default.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="ray: HOST:PORT of a cluster, or auto; by default this machine alone."),
]
GpusPerActor = Annotated[float, typer.Option(min=0, help="ray: of each worker, as 0.5; needs --device cuda.")]


def listed(option: str, text: str) -> tuple[str, ...]:
    """What stands between commas. Raises ConfigurationError for commas alone, with which nothing would be asked."""
    words = tuple(filter(None, map(str.strip, text.split(","))))
    if text and not words:
        raise ConfigurationError(f"{option}: at least one is needed beside the commas, got {text!r}")
    return words


def check_engine(engine: str) -> None:
    """Raises ConfigurationError for another than this process and Ray."""
    if engine not in {"process", "ray"}:
        raise ConfigurationError(f"engine: {engine!r} is not known; use process or ray")


def choose_data(configured: DataConfig | None, name: str | None, directory: Path | None) -> DataConfig:
    """The data that a checkpoint was trained on, in the folder that is named, unless other data are named."""
    if configured is not None and name in (None, configured.name):
        return replace(configured, directory=str(directory)) if directory else configured
    return parse_data_config({"name": name, "directory": None if directory is None else str(directory)})


def data_for(manifest: Manifest, name: str, directory: Path | None) -> DataConfig:
    """The data set parted as for the bundle's fitting, so that its test images are none that it has seen."""
    chosen = choose_data(None, name, directory)
    if manifest.data is not None and manifest.data.name == chosen.name:
        chosen = replace(chosen, split_seed=manifest.data.split_seed, left_out=manifest.data.left_out)
    return chosen


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calls with what is done and what there is in all."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
