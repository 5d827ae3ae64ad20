"""The process that owns a device: loads a bundle, then judges the batches that it finds in its slab.

It ends when whoever feeds it does, however that happens.
"""

import logging
import os
import signal
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import numpy as np
import torch
from torch import Tensor

from detectors import Screener, load_bundle
from detectors.screener import check_images
from model.errors import BundleError, LGMGuardError
from service.acceleration import accelerate, check_low_precision
from service.devices import powers_of_two
from service.errors import InferenceError
from service.graph import Verdict, graph_of
from service.logs import configure_logs
from service.plan import COUNT, SECONDS, Plan, Said
from service.slab import Slab

logger = logging.getLogger(__name__)
NICENESS = 10  # the event loop, where requests are refused and probes answered, must not wait for a processor


def run(plan: Plan, connection: Connection) -> None:
    """The process from its first to its last line; the first thing it is sent is the slab."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they go to whole groups; it is the feeder that decides when to end
    os.nice(NICENESS)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    configure_logs(style="json" if plan.log_format == "json" else "console", level=plan.log_level)
    torch.set_num_threads(plan.threads)
    slab = Slab(recv_handle(connection), plan.layout)
    try:
        pad, trace = plan.device != "cpu" or plan.compiler != "none", plan.compiler == "none"
        judge = Judge(load(plan), slab, pad=pad, trace=trace)
        judge.warm()
    except LGMGuardError as error:
        connection.send_bytes(bytes([Said.REFUSED]) + str(error).encode())
        return
    connection.send_bytes(bytes([Said.READY]))
    _serve(judge, connection)


def _end_with_the_parent() -> None:
    """A worker that hangs would not see that its connection has closed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def load(plan: Plan) -> Screener:
    """The bundle on its device, checked as it was saved and again as it will run. Raises BundleError."""
    screener = load_bundle(plan.bundle, plan.device)
    if screener.version != plan.version:
        raise BundleError(f"{plan.bundle} is version {screener.version} by now; {plan.version} was asked for")
    screener.self_test()
    accelerate(screener, precision=plan.precision, compiler=plan.compiler)
    if plan.precision == "float32":
        screener.self_test()
    else:
        check_low_precision(screener)
    return screener


class Judge:
    """Judges the first images of a slab. On a CPU any number of them; elsewhere padded to a power of two, since
    every new size costs a compilation there and padding next to nothing.
    """

    def __init__(self, screener: Screener, slab: Slab, *, pad: bool, trace: bool):
        self._screener = screener
        self._slab = slab
        self._sizes = powers_of_two(len(slab.images))
        self._pad = pad
        self._images = torch.from_numpy(slab.images)
        self._outputs = graph_of(screener, self._sizes) if trace else Verdict(screener)
        if screener.device.type == "cuda":
            _pin(self._images)

    def warm(self) -> None:
        """Run the sizes that batches grow through, so that no request pays for a first time."""
        for size in self._sizes:
            self(size)

    @torch.inference_mode()
    def __call__(self, count: int) -> None:
        size = next(size for size in self._sizes if size >= count) if self._pad else count
        self._slab.images[count:size] = 0
        images = self._images[:size].to(self._screener.device, non_blocking=True)
        check_images(images, self._screener.image_format.shape)
        outputs = self._outputs(images.contiguous(memory_format=torch.channels_last))
        class_index, probabilities, log_likelihood, *others = (out[:count].numpy(force=True) for out in outputs)
        if not np.isfinite(log_likelihood).all():
            raise InferenceError("the model gave a likelihood that is not finite")
        self._slab.write((class_index, probabilities, log_likelihood, *others))


def _pin(images: Tensor) -> None:
    """Page-lock shared memory, so that copies to the device need not wait for each other."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(images.data_ptr(), images.nbytes, 0))
    if status != 0:
        logger.warning("the slab could not be pinned (CUDA error %d); copies to the device are slower", status)


def _serve(judge: Judge, connection: Connection) -> None:
    while True:
        try:
            (count,) = COUNT.unpack(connection.recv_bytes())
        except EOFError:
            return
        started = time.monotonic()
        try:
            judge(count)
        except Exception as error:
            logger.exception("a batch of %d images failed", count)
            connection.send_bytes(bytes([Said.FAILED]) + type(error).__name__.encode())
        else:
            connection.send_bytes(bytes([Said.JUDGED]) + SECONDS.pack(time.monotonic() - started))
