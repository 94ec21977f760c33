"""How many cores are free at this moment: what a measurement on a CPU may use without waiting for other work."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


def allowed() -> int:
    """Cores that this process may run on: its affinity, cut by the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()[:2]
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup of version 2, or "max": no quota
        return cores


def _ticks() -> tuple[int, int] | None:
    """(busy, all) ticks so far of the cores that this process may run on; None where the system does not tell."""
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    counts = [list(map(int, line.split()[1:9])) for line in lines if line.split(" ")[0] in mine]
    if not counts:
        return None
    total = sum(map(sum, counts))
    return total - sum(each[3] + each[4] for each in counts), total  # columns idle and iowait


def busy(seconds: float = 0.5) -> float:
    """Cores that other work takes: looked at for so long, while this process sleeps; elsewhere by the load average."""
    first = _ticks()
    if first is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    time.sleep(seconds)
    second = _ticks()
    assert second is not None
    spent = second[1] - first[1]
    cores = len(os.sched_getaffinity(0))
    return cores * (second[0] - first[0]) / spent if spent else 0.0


def free(seconds: float = 0.5) -> int:
    """Cores of :func:`allowed` that nothing else uses; 0 where other work takes all of them."""
    return max(0, min(allowed(), round(allowed() - busy(seconds))))
