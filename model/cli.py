"""lgm train."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from model.config import load_config
from model.losses.known import LOSSES, RIVALS, options_of, title_of
from model.train import train as run_training
from model.training_log import RunLog

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
) -> None:
    """Train a network, with the L-GM loss or another one; the same command again resumes a run that was stopped."""
    loaded = load_config(config, set_ or (), loss=loss)
    folder = output or Path("runs") / loaded.name
    with RunLog(folder) as log:
        checkpoint = run_training(loaded, folder, log, command=shlex.join(["lgm", *sys.argv[1:]]))
    judge = " by Gaussians fitted after training" if loaded.loss.name in RIVALS else ""
    typer.echo(f"test accuracy {checkpoint.test_accuracy:.4f}{judge}; {folder / 'checkpoint.pt'}")
