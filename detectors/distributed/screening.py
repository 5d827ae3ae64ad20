"""`lgm screen --engine ray`: the blocks that are not done yet, spread over Ray Data's pool of actors."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detectors.bulk import Counts
from detectors.distributed.cluster import POLL_SECONDS, RETRIES, Head, Workers, check_ray, connected, import_ray
from detectors.distributed.judging import BlockScreener, Job
from detectors.distributed.ledger import Ledger, Plan
from detectors.distributed.places import local_path
from detectors.distributed.sources import find_blocks
from detectors.manifest import load_manifest

MOST_TASKS = 10_000  # Ray keeps facts of each

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """address: of a cluster's head; without it Ray runs on this machine."""

    address: str | None = None
    workers: Workers = field(default_factory=Workers)
    block_size: int = 4096
    image_column: str = "image"
    device: str = "cpu"


def screen_with_ray(
    bundle: Path, inputs: Sequence[str], output: str, options: RayOptions, progress: Progress
) -> Counts:
    """Judge every image once and write the rows below output; goes on where a run that was killed has ended.

    progress is told of blocks done and of all. Raises ConfigurationError, DataError, StoreError, BundleError, and
    ClusterError; whatever part is written by then stays and is not judged again.
    """
    check_ray()
    manifest = load_manifest(bundle)
    given, output = tuple(map(_absolute, inputs)), _absolute(output)
    plan = Plan(
        bundle=manifest.name,
        version=manifest.version,
        inputs=given,
        block_size=options.block_size,
        image_column=options.image_column,
    )
    ledger = Ledger(output)
    blocks = find_blocks(given, block_size=options.block_size, image_column=options.image_column)
    num_blocks = ledger.begin(plan, blocks)
    finished = ledger.finished()
    pending = [number for number in range(num_blocks) if number not in finished]
    if finished:
        ledger.check_tables(pending)
    counts = ledger.counts(finished)
    progress(len(finished), num_blocks)
    job = Job(
        bundle=bundle.resolve(),
        version=manifest.version,
        device=options.device,
        output=output,
        image_column=options.image_column,
    )
    for done, found in enumerate(_spread(job, pending, options), start=len(finished) + 1):
        counts += found
        progress(done, num_blocks)
    ledger.close(counts, num_blocks)
    return counts


class _Actor:
    """What Ray Data calls with the numbers of some blocks."""

    def __init__(self, job: Job):
        self._screener = BlockScreener(job)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in batch["block"]:
            yield {name: [value] for name, value in asdict(self._screener.judge(int(number))).items()}


def _spread(job: Job, pending: Sequence[int], options: RayOptions) -> Iterator[Counts]:
    if not pending:
        return
    with connected(options.address) as head:
        ray = import_ray()
        resources = options.workers.resources(options.address)
        data = ray.data.from_items(
            [{"block": number} for number in pending], override_num_blocks=min(len(pending), MOST_TASKS)
        ).map_batches(
            _Actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(options.workers.count(), len(pending))),
            max_task_retries=RETRIES,
            **resources,
        )
        for row in _watched(data.iter_rows, head):
            yield Counts(**row)


def _watched(rows: Callable[[], Iterator[dict[str, Any]]], head: Head) -> Iterator[dict[str, Any]]:
    """Rows as they come, for as long as the head node is there: Ray itself would wait for it."""
    arrived: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def gather() -> None:
        try:
            for row in rows():
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:  # raised again where rows are awaited
            arrived.put(error)

    threading.Thread(target=gather, name="lgm-ray", daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=POLL_SECONDS)
        except queue.Empty:
            head.check()
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise head.told(item) from None
        yield item


def _absolute(address: str) -> str:
    """Workers have other working directories."""
    path = local_path(address)
    return address if path is None else str(Path(path).absolute())
