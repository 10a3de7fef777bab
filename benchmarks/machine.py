"""The machine that the numbers are from."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.settings import ROOT

PACKAGES = ("tallgrass", "numpy", "scipy", "zarr", "dask", "distributed")


def describe() -> dict[str, Any]:
    """Processor, memory, versions, time and load: taken before anything is measured."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": list(os.getloadavg()),
    }


def _processor() -> str:
    """The model as the kernel names it, with the numbers that tell its generation."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    kind = fields.get("model name", platform.processor())
    return f"{kind} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
