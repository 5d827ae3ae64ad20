"""lgm train."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from model.config import load_config
from model.train import train as run_training
from model.training_log import RunLog

app = typer.Typer()


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, for instance model/configs/mnist.toml.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, as often as needed.")] = None,
) -> None:
    """Train a network with the L-GM loss; the same command again resumes a run that was stopped."""
    loaded = load_config(config, set_ or ())
    folder = output or Path("runs") / loaded.name
    with RunLog(folder) as log:
        checkpoint = run_training(loaded, folder, log, command=shlex.join(["lgm", *sys.argv[1:]]))
    typer.echo(f"test accuracy {checkpoint.test_accuracy:.4f}; {folder / 'checkpoint.pt'}")
