"""Real processes that talk over gloo, forked from one that has imported everything: a launch takes a moment."""

import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.devices import Devices

FORKING = get_context("forkserver")
FORKING.set_forkserver_preload(["tests.model.ranks", "model.train"])
LIMIT_SECONDS = 600


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(devices, *arguments)`, a function of a module, returns on each of so many processes."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(size, mp_context=FORKING) as processes:
        store = f"file://{Path(folder) / 'store'}"
        told = [processes.submit(_joined, store, rank, size, work, *arguments) for rank in range(size)]
        return [pickle.loads(answer.result(LIMIT_SECONDS)) for answer in told]


def _joined(store: str, rank: int, size: int, work: Callable[..., Any], *arguments: Any) -> bytes:
    """Pickled here: tensors that are sent as such are gone with the process that sends them."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=LIMIT_SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)
    try:
        return pickle.dumps(work(Devices.of(), *arguments))
    finally:
        dist.destroy_process_group()
