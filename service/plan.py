"""What a worker and its feeder agree on: the plan that it starts with, and their messages.

Messages to a worker are the number of images in the slab; those it sends begin with a byte that says what they are.
No torch here: the feeder does without.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from service.settings import Compiler, Precision
from service.slab import Layout

COUNT = struct.Struct("<I")
SECONDS = struct.Struct("<d")


class Said(IntEnum):
    READY = 1
    REFUSED = 2  # the bundle cannot be served; why
    JUDGED = 3  # how many seconds it took
    FAILED = 4  # this batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a worker is to do."""

    bundle: Path
    version: str
    device: str
    threads: int
    precision: Precision
    compiler: Compiler
    layout: Layout
    log_format: str
    log_level: str
