"""How many processors this process may use: what it is pinned to, and its container's quota."""

import math
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    return max(1, min(_pinned_cpus(), _quota(cgroup)))


def _pinned_cpus() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> int:
    """The quota in whole processors, rounded up; unlimited is the machine's number."""
    for read in (_quota_v2, _quota_v1):
        try:
            quota, period = read(cgroup)
        except (OSError, ValueError):
            continue
        return math.ceil(quota / period) if quota > 0 and period > 0 else os.cpu_count() or 1
    return os.cpu_count() or 1


def _quota_v2(cgroup: Path) -> tuple[int, int]:
    quota, period = (cgroup / "cpu.max").read_text().split()
    return (-1 if quota == "max" else int(quota)), int(period)


def _quota_v1(cgroup: Path) -> tuple[int, int]:
    folder = cgroup / "cpu"
    return (
        int((folder / "cpu.cfs_quota_us").read_text()),
        int((folder / "cpu.cfs_period_us").read_text()),
    )
