"""Variants: the data of `speed` stored as float32, and compressed with zstd."""

from dataclasses import replace
from typing import Any

from benchmarks.cluster import two_workers
from benchmarks.data import tall
from benchmarks.settings import Settings
from benchmarks.speed import COLUMNS, GIGABYTES, compare

VARIANTS: tuple[dict[str, Any], ...] = ({"dtype": "float32"}, {"compressed": True})
ROUNDS = 2
"""At most; dask once."""


def measure(settings: Settings) -> dict[str, Any]:
    """Each variant of each width on the same two workers."""
    cases = []
    with two_workers() as client:
        for variant in VARIANTS:
            for n in COLUMNS:
                data = replace(tall(settings.folder, settings.bytes(GIGABYTES), n), **variant)
                cases.append(compare(data, client, min(settings.rounds, ROUNDS), dask_rounds=1))
    return {"workers": 2, "cases": cases}
