"""How many CPU cores this process may use: llama.cpp's threads by default."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of cores this process may use, at least 1.

    Hyper-threads count once and a share of a core not at all, since llama.cpp's threads spin: one that has no core of
    its own holds up the others. A container's CPU limit (cgroup v2) and ``OMP_NUM_THREADS`` lower the number.
    """
    limits = [_physical_cores(), _cgroup_cores(_CGROUPS, _OWN_CGROUP), _openmp_threads()]
    return max(min(limit for limit in limits if limit is not None), 1)


def _physical_cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text().strip() if topology.exists() else str(cpu))
    return len(siblings)


def _cgroup_cores(root: Path, own: Path) -> int | None:
    """Whole cores within the quota of this process's control group and of those above it, or None without one."""
    found = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE) if own.exists() else None
    if not found:
        return None
    group = root / found[1]
    quotas = [folder / "cpu.max" for folder in (group, *group.parents) if folder.is_relative_to(root)]
    shares = [file.read_text().split() for file in quotas if file.exists()]
    return min((int(quota) // int(period) for quota, period in shares if quota != "max"), default=None)


def _openmp_threads() -> int | None:
    """The outermost number of ``OMP_NUM_THREADS``; what OpenMP itself would not understand sets no limit."""
    found = re.match(r"\s*([1-9]\d*)\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(found[1]) if found else None
