"""Tables: the records as Markdown, put between markers in the README."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import records, scaling_report

Record = dict[str, Any]


def put_into(document: Path, folder: Path = records.RESULTS) -> list[str]:
    """Write each table between `<!-- table: name -->` and `<!-- end -->`; the names that were found there."""
    text, found = document.read_text(), []
    for name in TABLES:
        record = records.load(name, folder)
        replaced = None if record is None else _replaced(text, name, table_of(name, record))
        if replaced is not None:
            text = replaced
            found.append(name)
    if found:
        document.write_text(text)
    return found


def _replaced(text: str, name: str, table: str) -> str | None:
    """The text with the table between its markers, or None when they are not there."""
    before, begin, rest = text.partition(f"<!-- table: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{begin}\n{table}\n{end}{after}" if end else None


def table_of(name: str, record: Record) -> str:
    """A record as Markdown, with a line that says where the numbers are from."""
    return f"{TABLES[name](record)}\n\n{_origin(name, record['machine'])}"


def _origin(name: str, machine: Record) -> str:
    versions = machine["versions"]
    libraries = ", ".join(f"{library} {versions[library]}" for library in ("numpy", "scipy", "zarr", "dask"))
    return (
        f"From `benchmarks/results/{name}.json`: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, {libraries}; {machine['date'][:10]}."
    )


def _speed(record: Record) -> str:
    head = ("n", "rows", "Tallgrass", "verified", "no checkpoints", "by tsqr", "by cholesky_qr", "dask", "NumPy",
            "Spark", "times faster than dask", "than NumPy", "reads", "2mn² flops", "over the limit",
            "over reads")  # fmt: skip
    return _table(head, [_speed_row(case) for case in record["cases"]])


def _speed_row(case: Record) -> list[str]:
    faster = case["times_faster_than"]
    return [
        f"{case['columns']:,}", f"{case['rows']:,}",
        *(
            _median(case, name)
            for name in ("tallgrass", "tallgrass_verified", "unkept", "tsqr", "cholesky_qr", "dask", "numpy", "spark")
        ),
        *(f"{faster[name]:.1f}" if name in faster else "" for name in ("dask", "numpy")),
        *(_median(case, name) for name in ("zarr_reads", "dgemm")), f"{case['over_limit']:.2f}",
        f"{case['seconds']['tallgrass']['median'] / case['seconds']['zarr_reads']['median']:.2f}",
    ]  # fmt: skip


def _variants(record: Record) -> str:
    head = ("stored as", "n", "GB on disk", "Tallgrass", "verified", "dask", "times faster", "reads", "over the limit")
    return _table(head, [_variant_row(case) for case in record["cases"]])


def _variant_row(case: Record) -> list[str]:
    return [
        f"{case['dtype']}{', zstd' if case['compressed'] else ''}", f"{case['columns']:,}",
        f"{case['stored_bytes'] / 1e9:.2f}",
        *(_median(case, name) for name in ("tallgrass", "tallgrass_verified", "dask")),
        f"{case['times_faster_than']['dask']:.1f}", _median(case, "zarr_reads"), f"{case['over_limit']:.2f}",
    ]  # fmt: skip


def _reading(record: Record) -> str:
    head = ("stored as", "GB on disk of one", "files, nothing decoded", "– into fresh memory",
            "Zarr, as Dask starts workers", "Zarr", "Zarr, with huge pages", "Tallgrass",
            "times faster than Zarr")  # fmt: skip
    return _table(head, [_reading_row(case) for case in record["cases"]])


def _reading_row(case: Record) -> list[str]:
    found = case["seconds_per_gigabyte"]
    key = "seconds" if "far away" in case["form"] else "processor_seconds"
    seconds = {name: one[key] for name, one in found.items()}
    names = ("files", "files_afresh", "zarr_dask", "zarr", "zarr_tuned", "ours")
    return [
        case["form"], f"{case['stored_bytes'] / case['bytes']:.2f}",
        *(f"{seconds[name]:.2f} s" if name in seconds else "" for name in names),
        f"{seconds.get('zarr', seconds['zarr_tuned']) / seconds['ours']:.1f}",
    ]  # fmt: skip


def _median(case: Record, name: str) -> str:
    return f"{case['seconds'][name]['median']:.2f} s" if name in case["seconds"] else ""


def _memory(record: Record) -> str:
    head = ("", "rows", "GB", "idle worker, MB", "peak, MB", "above idle, MB", "planned peak, MB")
    return _table(head, [_memory_row(case) for case in record["cases"]])


def _memory_row(case: Record) -> list[str]:
    planned = case.get("planned_peak_bytes")
    size = [max(case["idle_bytes"]), max(case["peak_bytes"]), case["above_idle_bytes"]]
    return [
        {"tallgrass": "Tallgrass", "dask": "dask"}[case["name"]], f"{case['rows']:,}", f"{case['bytes'] / 1e9:.3g}",
        *(f"{number / 1e6:.0f}" for number in size), f"{planned / 1e6:.0f}" if planned else "",
    ]  # fmt: skip


def _overheads(record: Record) -> str:
    rows = [(f"`tallgrass {name}`", _seconds(times["median"])) for name, times in record["commands"].items()]
    at = 1 + [name for name, _ in rows].index("`tallgrass run`")
    rows[at:at] = [(f"– {step}", _seconds(seconds)) for step, seconds in record["steps"].items()]
    graph = record["graph"]
    size = f"{graph['chunks']:,} chunks ({graph['bytes'] / 1e12:.1f} TB)"
    what = f"graphs of both passes over {size}: {graph['tasks']:,} tasks"
    return _table(("100 × 5 job, from prompt to prompt", "seconds"), [*rows, (what, _seconds(graph["seconds"]))])


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 0.1 else f"{seconds:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    rule = [":--", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _factors(record: Record) -> str:
    head = ("what", "rows × columns", "by", "reads of A", "seconds", "peak above idle, MB", "error")
    rows = [
        [
            case["what"], f"{case['rows']:,} × {case['columns']:,}", one["name"], one["reads"],
            f"{median(one['seconds']):.2f}", f"{one['above_idle_bytes'] / 1e6:.0f}",
            _error(one),
        ]
        for case in record["cases"]
        for one in case["found"]
    ]  # fmt: skip
    return _table(head, rows)


def _error(one: Record) -> str:
    if one["XA_minus_I"] is not None:
        return f"‖XA − I‖ {one['XA_minus_I']:.1e}"
    return "" if one["error_of_values"] is None else f"of a value {one['error_of_values']:.1e}"


def _service(record: Record) -> str:
    kinds = list(record["found"])
    found = [record["found"][kind] for kind in kinds]

    def row(what: str, text: Callable[[Record], str]) -> list[str]:
        return [what, *map(text, found)]

    rows = [
        row("`tallgrass serve` to the first job accepted", lambda one: f"{one['seconds_to_first']:.2f} s"),
        row("a small job, through the service", lambda one: f"{one['small']['service']:.2f} s"),
        row("the same by hand, on a warm cluster", lambda one: f"{one['small']['by_hand']:.2f} s"),
        row(f"submit, {record['clients']} clients at once: median", lambda one: _ms(one["load"]["median"])),
        row("– p99", lambda one: _ms(one["load"]["p99"])),
        row(f"{record['jobs']:,} jobs submitted and done", lambda one: f"{one['load']['done_seconds']:.0f} s"),
        row(
            "server's memory before and after, MB", lambda one: " → ".join(_mb(b) for b in one["load"]["server_bytes"])
        ),
        *(
            row(f"list with {record['history']:,} jobs, {way}: p99", lambda one, way=way: _ms(one["lists"][way]["p99"]))
            for way in found[0]["lists"]
        ),
    ]
    return _table(["", *({"sqlite": "SQLite", "postgresql": "PostgreSQL"}[kind] for kind in kinds)], rows)


def _chaos(record: Record) -> str:
    head = ("what happened, at a random moment", "runs", "ended by themselves", "the same command again",
            "spans not done again", "lost: median", "– at most")  # fmt: skip
    return _table(head, [_chaos_row(fault, record["runs"]) for fault in FAULTS])


FAULTS = {
    "worker": "SIGKILL of a worker",
    "scheduler": "SIGKILL of the scheduler",
    "driver": "SIGKILL of the command",
    "network": "a worker's cable pulled for 0.2 to 4 s",
}


def _chaos_row(fault: str, runs: list[Record]) -> list[str]:
    found = [one for one in runs if one["fault"] == fault]
    again = [one for one in found if one["commands"] == 2]
    if not found:
        return [FAULTS[fault], "0", *[""] * 5]
    lost = [one["lost"] for one in found]
    return [
        FAULTS[fault], f"{len(found)}", f"{len(found) - len(again)}", f"{len(again)}",
        f"{sum(one['resumed_spans'] for one in again):,}", f"{median(lost):.1f} s", f"{max(lost):.1f} s",
    ]  # fmt: skip


def _scaling(record: Record) -> str:
    parts = scaling_report.tables(record)
    return "\n\n".join(f"{title}:\n\n{_table(head, rows)}" for title, head, rows in parts)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"


TABLES: dict[str, Callable[[Record], str]] = {
    "speed": _speed,
    "variants": _variants,
    "reading": _reading,
    "factors": _factors,
    "memory": _memory,
    "overheads": _overheads,
    "service": _service,
    "chaos": _chaos,
    "scaling": _scaling,
}
"""How the record of each name becomes a table."""
