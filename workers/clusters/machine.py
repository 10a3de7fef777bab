"""What this machine lets one process use: cores and memory, within the limits of its control groups.

A container sees all the cores and all the memory of its host; what it may use stands in files of the control
groups, version 1 (a folder per resource) or version 2 (one folder), in its own group and in each one above it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Cores and memory that this process may use."""

    cores: int
    """Cores that it may run on: affinity and the processor quota of its control groups, at least 1."""
    memory_bytes: int
    """Memory that it may have: the machine's, or the tightest limit of its control groups."""
    available_bytes: int
    """What of that is free now, counting the page cache as free."""


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine that we run on; `root` is where its /proc and /sys are found."""
    total, available = _physical_memory(root)
    for limit, used in _memory_limits(root):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Machine(max(1, min(_affinity(), _quota(root))), total, available)


def _affinity() -> int:
    """The cores that the scheduler of the kernel may put us on (taskset, cpusets)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical_memory(root: Path) -> tuple[int, int]:
    """Bytes of memory in all, and available without swapping."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        import psutil

        memory = psutil.virtual_memory()
        total, available = memory.total, memory.available
    return total, available


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group with a limit; the page cache that the kernel can drop is not used."""
    for folder in _groups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is not None:
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            yield limit, max(0, used - _droppable(folder))


def _droppable(folder: Path) -> int:
    try:
        words = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    counts = {name: int(value) for name, value in words}
    return counts.get("total_inactive_file", counts.get("inactive_file", 0))


def _quota(root: Path) -> int:
    """Whole cores that the processor quotas allow, rounded up: 1.5 cores keep two processes busy."""
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota_of(folder)) is not None]
    return math.ceil(min(quotas, default=1 << 20))


def _quota_of(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not (quota.isdigit() and period.isdigit()):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of our control group for this controller and of those above it; in a container, of its own."""
    folders: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in _mounts(root, controllers, controller):
            group = mount / path.lstrip("/")
            folders += [group, *(above for above in group.parents if above.is_relative_to(mount))]
    return folders


def _mounts(root: Path, controllers: str, controller: str) -> list[Path]:
    """Where the kernel shows the groups: version 2 names no controllers, version 1 a folder for each."""
    base = root / "sys/fs/cgroup"
    return [base / controllers, base / controller] if controllers else [base]


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
