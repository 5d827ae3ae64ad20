"""`torchrun --nproc-per-node N -m model train CONFIG`: one of the processes of a training run."""

import ctypes
import os
import signal
import sys

import typer

from model.errors import LGMGuardError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Run the command; whoever launched this process as a rank tells its error, once."""
    launched = "TORCHELASTIC_ERROR_FILE" in os.environ
    if launched:
        _end_with_the_launcher()
    try:
        _run()
    except LGMGuardError as error:
        if not launched:
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


def _end_with_the_launcher() -> None:
    """A rank has a session of its own, and would hold the run's folder after its launcher was killed.

    It ends at once on Ctrl-C too: a checkpoint is whole at any moment, and the launcher says what it holds.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run() -> None:
    """Only now: torch takes seconds to import, in which the launcher may end."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from model import cli

    app = typer.Typer(name="python -m model", pretty_exceptions_enable=False, add_completion=False)
    app.add_typer(cli.app)
    app.callback()(_train_a_network)
    record(app)()


def _train_a_network() -> None:
    """Train a network."""


if __name__ == "__main__":
    main()
