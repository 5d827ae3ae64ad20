"""Start the processes of a training run on this machine, and say what became of them."""

import logging
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from model.checkpoint import FILE_NAME, load_checkpoint
from model.errors import LGMGuardError, ProcessError, StoppedError

# torch gives the second one a level of its own.
LOGGERS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")


def launch(arguments: Sequence[str], output: Path, *, num_processes: int, restarts: int) -> None:
    """Run `python -m model train ARGUMENTS` in so many processes, as torchrun does, to the end.

    restarts: how often all of them start again, from the last checkpoint, after one has failed.
    Raises ProcessError: what ended the first that failed, and what the run's folder holds. StoppedError where this
    process was sent SIGINT, SIGTERM, SIGHUP or SIGQUIT; all of them have ended then.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # all that matters is in the error
    with TemporaryDirectory(prefix="lgm-train-") as errors:  # where a rank leaves what it failed of
        config = _configuration(num_processes, restarts, errors)
        try:
            elastic_launch(config, sys.executable)("-m", "model", "train", *arguments)
        except SignalException as stop:
            raise StoppedError(f"ended by {stop.sigval.name}; {_state(output)}", stop.sigval) from None
        except ChildFailedError as error:
            rank, failure = _first(error)
            raise ProcessError(_said(rank, failure, num_processes, output)) from None


def _configuration(num_processes: int, restarts: int, errors: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        logs_specs=DefaultLogsSpecs(log_dir=errors),
    )


def _first(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The one that was killed, if any was: others fail because it no longer answers, or are then ended by SIGTERM."""
    signals = {rank: failure for rank, failure in error.failures.items() if failure.exitcode < 0}
    killed = [(rank, failure) for rank, failure in signals.items() if failure.signal_name() != "SIGTERM"]
    return killed[0] if killed else error.get_first_failure()


def _said(rank: int, failure: ProcessFailure, num_processes: int, output: Path) -> str:
    """What the rank's error said, without its type; of one that said nothing, how it ended."""
    if failure.exitcode >= 0 and Path(failure.error_file).is_file():
        told: Any = failure.message
        message = str(told["message"] if isinstance(told, dict) else told)  # a dict as @record writes it
        return message.partition(": ")[2] or message
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with status {failure.exitcode}"
    return f"rank {rank} of {num_processes} {how}; {_state(output)}"


def _state(output: Path) -> str:
    try:
        checkpoint = load_checkpoint(output)
    except LGMGuardError:
        return "no epoch was finished, so the same command starts anew"
    epochs = checkpoint.config.training.epochs
    return f"{output / FILE_NAME} holds {checkpoint.epoch} of {epochs} epochs; the same command goes on from there"
