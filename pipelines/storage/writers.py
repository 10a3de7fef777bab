"""Who writes a result, where what a later run may go on from lies, and what may be replaced at all."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.addresses import Address
from pipelines.errors import PlanRefused
from pipelines.storage.arrays import local_path

ROOT = "zarr.json"
"""The object that makes a group of what lies beside it (Zarr v3)."""
KEPT, CHECKPOINTS = "kept", "checkpoints"
"""In the names of what an interrupted run leaves for the next one: what it has written, and what its spans made."""
RUNS = f"(?:{KEPT}|[0-9a-f]{{12}})"
"""What folders of runs end with, as a pattern."""


@dataclass(frozen=True)
class Writer:
    """Who writes a result."""

    run: str
    resumes: bool = False
    """True when it goes on where an earlier run was interrupted, and may be interrupted itself."""
    name: str = ""
    """A name that all attempts at one job share; without one, that of this process."""
    restart: bool = False
    """True when what an earlier run has done is to be forgotten."""


def checkpoints_of(url: str) -> Address:
    """Where the runs of a job leave what later ones may go on from: beside its result, or in a bucket that it fills."""
    path, options = local_path(url), getattr(url, "options", {})
    if path is not None:
        final = Path(os.path.realpath(path))
        return Address(str(final.with_name(f".{final.name}.{CHECKPOINTS}")), options)
    scheme, _, rest = url.rstrip("/").partition("://")
    folder, slash, name = rest.rpartition("/")
    return Address(f"{scheme}://{folder}/.{name}.{CHECKPOINTS}" if slash else f"{url}/.{CHECKPOINTS}", options)


def result_of(url: str) -> str:
    """The result that an array in a hidden folder is to be a part of; any other address as it is."""
    return re.sub(rf"\.([^/]+)\.partial-{RUNS}(/[^/]*)?$", r"\1", url)


def check_replaceable(url: str, ours: bool, *, overwrite: bool) -> None:
    """Raises PlanRefused for what is there already, unless it is a result of ours that may be replaced."""
    if not ours:
        raise PlanRefused(
            f"The output {url} exists and is not a result of Tallgrass. Nothing was changed; choose another output."
        )
    if not overwrite:
        raise PlanRefused(
            f"The output {url} holds a result already. Nothing was changed; choose another output, or set "
            "`overwrite: true` in the job file."
        )


def is_result(root: str | None) -> bool:
    """True for the metadata of a group that we wrote: not of one that merely holds such a group."""
    try:
        return str(json.loads(root or "")["attributes"]["tallgrass"]["schema"]).startswith("result/")
    except (ValueError, KeyError, TypeError):
        return False
