"""Records: what was measured, as JSON."""

import json
from pathlib import Path
from typing import Any

from benchmarks.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results"
"""Where the records of full-size runs are kept."""


def save(name: str, record: dict[str, Any], folder: Path) -> Path:
    """Keep a record; the file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return path


def load(name: str, folder: Path) -> dict[str, Any] | None:
    """The record of that name, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
