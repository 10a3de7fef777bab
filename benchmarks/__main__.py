"""The command: python -m benchmarks [WHAT], where WHAT is one of BENCHMARKS, all of them, or only their tables."""

import time
from pathlib import Path
from types import ModuleType

import click

from benchmarks import (
    chaos,
    factors,
    machine,
    memory,
    overheads,
    reading,
    records,
    scaling,
    scaling_report,
    service,
    speed,
    tables,
    variants,
)
from benchmarks.settings import ROOT, Settings, say

BENCHMARKS: dict[str, ModuleType] = {
    "speed": speed,
    "variants": variants,
    "reading": reading,
    "factors": factors,
    "memory": memory,
    "overheads": overheads,
    "service": service,
    "chaos": chaos,
    "scaling": scaling,
}
PLOTS = {"memory": memory.plot, "scaling": scaling_report.plot}
QUICK = 1 / 50
BUSY = 0.5
"""Load average above which the numbers are not worth much."""


@click.command()
@click.argument("what", type=click.Choice([*BENCHMARKS, "all", "tables"]), default="all")
@click.option("--quick", is_flag=True, help="A fiftieth of the size, once: to see that it works. Keeps no results.")
@click.option("--rounds", type=click.IntRange(min=1), help="Times that each contender is measured (default 3).")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=ROOT / "data" / "benchmarks",
    help="For data while it is measured: up to 8 GB. Default: data/benchmarks.",
)
@click.option("--results", type=click.Path(path_type=Path), help="For the records. Default: benchmarks/results.")
def main(what: str, quick: bool, rounds: int | None, folder: Path, results: Path | None) -> None:
    """Measure Tallgrass side by side with its peers; records as JSON, tables into the README."""
    kept = results or (folder / "quick-results" if quick else records.RESULTS)
    settings = Settings(folder.resolve(), rounds or (1 if quick else 3), QUICK if quick else 1.0)
    if what != "tables":
        for name in BENCHMARKS if what == "all" else [what]:
            _measure(name, settings, kept)
    if kept == records.RESULTS:
        found = tables.put_into(ROOT / "README.md")
        say(f"tables in README.md: {', '.join(found) or 'none has its markers there'}")


def _measure(name: str, settings: Settings, kept: Path) -> None:
    """One benchmark: measured, kept, and shown."""
    here = machine.describe()
    say(f"{name}, load average {here['load_average_before'][0]:.2f}")
    if here["load_average_before"][0] > BUSY and not settings.quick:
        say("  the machine is busy with something else: do not trust these numbers")
    began = time.monotonic()
    record = {"benchmark": name, "quick": settings.quick, "rounds": settings.rounds, "machine": here}
    record |= BENCHMARKS[name].measure(settings)
    record["minutes"] = round((time.monotonic() - began) / 60, 2)
    path = records.save(name, record, kept)
    if name in PLOTS:
        PLOTS[name](record, path.with_suffix(".svg"))
    say(f"\n{tables.table_of(name, record)}\n{path}, {record['minutes']} minutes\n")


if __name__ == "__main__":
    main()
