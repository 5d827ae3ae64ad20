"""One block judged, by whatever process: read and decoded a chunk ahead of the network, then written at once."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from detectors.bulk import Counts, Row, judge_chunk
from detectors.bundle import load_bundle
from detectors.distributed.ledger import Ledger
from detectors.distributed.sources import ImageBytes, read_block
from detectors.screener import Screener
from model.errors import BundleError, ImageError
from model.image_tensors import decode_image
from model.train import select_device

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker is told; the bundle lies at the same path on each machine."""

    bundle: Path
    version: str
    device: str
    output: str
    image_column: str


def load_version(bundle: Path, version: str, device: str) -> Screener:
    """Raises BundleError where this machine's is another version."""
    screener = load_bundle(bundle, select_device(device))
    if screener.version != version:
        raise BundleError(f"{bundle} is {screener.version} on this machine, {version} was asked for")
    return screener


class BlockScreener:
    """A loaded bundle that judges blocks. Raises BundleError where this machine's is another version."""

    def __init__(self, job: Job):
        self._job = job
        self._screener = load_version(job.bundle, job.version, job.device)
        self._ledger = Ledger(job.output)

    def judge(self, number: int) -> Counts:
        """Raises StoreError; then nothing of the block is written."""
        return self._ledger.finish(number, self._rows(number))

    def _rows(self, number: int) -> Iterator[list[Row]]:
        with ThreadPoolExecutor() as pool:
            chunks = read_block(self._ledger.block(number), self._job.image_column)
            decoded = ((chunk, list(pool.map(self._decode, chunk))) for chunk in chunks)
            for chunk, images in _ahead(decoded):
                yield judge_chunk(self._screener, [image.name for image in chunk], images)

    def _decode(self, image: ImageBytes) -> Tensor | str:
        if isinstance(image.content, str):
            return image.content
        try:
            return decode_image(image.content, self._screener.image_format)
        except ImageError as error:
            return f"{image.name}: {error}"


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same, the next one made while one is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield item
