"""lgm train."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from model.config import Config, load_config
from model.devices import Devices, join
from model.errors import ConfigurationError, StoppedError
from model.losses.known import LOSSES, RIVALS, options_of, title_of
from model.train import train as run_training
from model.training_log import Reporter, RunLog, Silent

app = typer.Typer()


def _list_losses(wanted: bool) -> bool:
    if not wanted:
        return wanted
    for name in LOSSES:
        options = ", ".join(
            f"loss.{option}" + ("" if default is None else f"={default:g}")
            for option, default in options_of(name).items()
        )
        typer.echo(f"{name:22}{title_of(name)}" + (f"\n{'':22}{options}" if options else ""))
    raise typer.Exit


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, for instance model/configs/mnist.toml.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="Another loss than the file's, with its defaults; see --list-losses.")
    ] = None,
    list_losses: Annotated[
        bool, typer.Option("--list-losses", is_eager=True, callback=_list_losses, help="Print every loss and stop.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, as often as needed.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes that train together, each on its GPU or core.")] = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="Of several: start all again so often, from the last checkpoint, if one fails.")
    ] = 0,
    command: Annotated[str | None, typer.Option(hidden=True, help="What the launcher was called with.")] = None,
) -> None:
    """Train a network, with the L-GM loss or another one; the same command again resumes a run that was stopped."""
    loaded = load_config(config, set_ or (), loss=loss)
    folder = output or Path("runs") / loaded.name
    command = command or shlex.join(["lgm", *sys.argv[1:]])
    if devices > 1:
        arguments = [str(config), *_options(folder, loss, set_ or []), "--command", command]
        _launch(loaded, arguments, folder, devices, restarts)
        return
    with join(loaded.training.device) as joined, _reporter(folder, joined) as reporter:
        checkpoint = run_training(loaded, folder, reporter, command=command, devices=joined)
    if joined.rank > 0:
        return
    judge = " by Gaussians fitted after training" if loaded.loss.name in RIVALS else ""
    typer.echo(f"test accuracy {checkpoint.test_accuracy:.4f}{judge}; {folder / 'checkpoint.pt'}")


def _options(folder: Path, loss: str | None, overrides: list[str]) -> list[str]:
    chosen = [] if loss is None else ["--loss", loss]
    return ["--output", str(folder), *chosen, *(word for override in overrides for word in ("--set", override))]


def _launch(config: Config, arguments: list[str], folder: Path, num_processes: int, restarts: int) -> None:
    """Only now: the launcher takes a second to import."""
    from model.launch import launch

    found = torch.cuda.device_count()
    if config.training.device == "cuda" and num_processes > found:
        raise ConfigurationError(f"--devices {num_processes} is more than the {found} CUDA devices found")
    try:
        launch(arguments, folder, num_processes=num_processes, restarts=restarts)
    except StoppedError as stopped:
        typer.echo(stopped, err=True)
        raise typer.Exit(128 + stopped.number) from None


@contextmanager
def _reporter(folder: Path, devices: Devices) -> Iterator[Reporter]:
    """Of several processes only the first one tells."""
    if devices.rank > 0:
        yield Silent()
        return
    with RunLog(folder) as log:
        yield log
