"""`torchrun --nproc-per-node N -m model train CONFIG`: one of the processes of a training run."""

import os
import sys

import typer
from torch.distributed.elastic.multiprocessing.errors import record

from model import cli
from model.errors import LGMGuardError

app = typer.Typer(name="python -m model", pretty_exceptions_enable=False, add_completion=False)
app.add_typer(cli.app)


@app.callback()
def _command() -> None:
    """Train a network."""


run = record(app)

if __name__ == "__main__":
    try:
        run()
    except LGMGuardError as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # else whoever started this process tells it, once
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
