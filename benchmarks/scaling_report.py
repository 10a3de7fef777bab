"""What the scaling study found, as tables and as a plot."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.units import counted

Record = dict[str, Any]
COLOURS = ("#2a7f3f", "#b5651d", "#30588c")


def tables(record: Record) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, head and rows of each table."""
    return [
        (f"Real runs on up to {record['cores']} cores, both passes; and what the simulator says of them", (
            "rows", "read from", "workers", "seconds", "strong scaling", "weak scaling", "simulated", "off by",
        ), [_real_row(case, record["real"]) for case in record["real"]]),
        ("A real scheduler, workers whose spans sleep; and what the simulator says of them", (
            "rows of the graph", "tasks", "workers", "a span sleeps", "seconds", "simulated", "off by",
            "scheduler's processor, ms a task", "its memory, MB", "grown by, MB",
        ), [_scheduler_row(case) for case in record["scheduler"]]),
        ("Simulated: a matrix of so many rows on more and more workers", (
            "rows", "spans", *(counted(workers, "worker") for workers in _workers(record)), "the most are limited by",
        ), [_strong_row(record, rows, length) for rows, length in _strong(record)]),
        ("Simulated: so many rows for each worker", (
            "workers", "rows", "spans", "seconds", "efficiency", "scheduler busy",
        ), [_weak_row(case) for case in record["foreseen"] if case["scaling"] == "weak"]),
    ]  # fmt: skip


def _real_row(case: Record, cases: Sequence[Record]) -> list[str]:
    return [
        f"{case['rows']:,}", "the seed" if case["source"] == "synthetic" else "a store", f"{case['workers']}",
        f"{case['seconds']:.2f}", _percent(efficiency(case, cases, weak=False)),
        _percent(efficiency(case, cases, weak=True)), f"{case['simulated']:.2f}",
        _off(case["seconds"], case["simulated"]),
    ]  # fmt: skip


def efficiency(case: Record, cases: Iterable[Record], *, weak: bool) -> float | None:
    """Seconds of one worker over those of all, for the same rows, or for the same rows of each worker."""
    rows = case["rows"] // case["workers"] if weak else case["rows"]
    for one in cases:
        if (one["source"], one["workers"], one["rows"]) == (case["source"], 1, rows):
            return float(one["seconds"] / case["seconds"] / (1 if weak else case["workers"]))
    return None


def _scheduler_row(case: Record) -> list[str]:
    grown = case["scheduler_bytes"] - case["scheduler_bytes_before"]
    return [
        f"{case['rows']:,}", f"{case['tasks']:,}", f"{case['workers']}", f"{case['seconds']:g} s",
        f"{case['total']:.2f}", f"{case['simulated']:.2f}", _off(case["total"], case["simulated"]),
        f"{1000 * case['scheduler_cpu'] / case['tasks']:.2f}", f"{case['scheduler_bytes'] / 1e6:.0f}",
        f"{grown / 1e6:.1f}",
    ]  # fmt: skip


def _strong(record: Record) -> list[tuple[int, float | None]]:
    cases = [case for case in record["foreseen"] if case["scaling"] == "strong"]
    return list(dict.fromkeys((case["rows"], case["span_seconds"]) for case in cases))


def _workers(record: Record) -> list[int]:
    return sorted({case["workers"] for case in record["foreseen"]})


def family(record: Record, rows: int, span_seconds: float | None) -> list[Record]:
    """The simulations of one matrix on more and more workers."""
    wanted = ("strong", rows, span_seconds)
    found = [one for one in record["foreseen"] if (one["scaling"], one["rows"], one["span_seconds"]) == wanted]
    return sorted(found, key=lambda one: int(one["workers"]))


def _strong_row(record: Record, rows: int, span_seconds: float | None) -> list[str]:
    cases = family(record, rows, span_seconds)
    spans = f"{cases[0]['spans']:,}" + (f" (`span_seconds: {span_seconds:g}`)" if span_seconds else "")
    cells = [f"{_time(case['seconds'])}, {_percent(case['efficiency'])}" for case in cases]
    return [f"{rows:,}", spans, *cells, cases[-1]["limit"]]


def _weak_row(case: Record) -> list[str]:
    return [
        f"{case['workers']:,}", f"{case['rows']:,}", f"{case['spans']:,}", _time(case["seconds"]),
        _percent(case["efficiency"]), _percent(case["scheduler_busy"]),
    ]  # fmt: skip


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.0f} %"


def _off(measured: float, simulated: float) -> str:
    return f"{100 * (simulated / measured - 1):+.0f} %"


def plot(record: Record, path: Path) -> None:
    """Efficiency against workers: measured up to all cores, simulated beyond."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "tallgrass"  # the same numbers give the same file
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({rows for rows, _ in _strong(record)})
    for rows, colour in zip(sizes, COLOURS, strict=False):
        for span_seconds, line in ((None, "-"), (record["shorter"], "--")):
            cases = family(record, rows, span_seconds)
            if not cases:
                continue
            shorter = "" if span_seconds is None else f", spans of {span_seconds:g} s"
            axes.plot(
                [case["workers"] for case in cases], [100 * case["efficiency"] for case in cases], line, color=colour,
                label=f"{rows:.0e} rows{shorter}".replace("e+", "e"),
            )  # fmt: skip
    largest = max(case["rows"] for case in record["real"])
    for source, mark in (("synthetic", "o"), ("stored", "s")):
        cases = [case for case in record["real"] if (case["source"], case["rows"]) == (source, largest)]
        axes.plot(
            [case["workers"] for case in cases],
            [100 * (efficiency(case, record["real"], weak=False) or 0.0) for case in cases],
            mark, color="black", markersize=4, label=f"measured, {largest / 1e6:.3g} million rows, {source}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(0, 110)
    axes.set_xticks(_workers(record), [f"{workers:,}" for workers in _workers(record)])
    axes.minorticks_off()
    axes.set_xlabel("Workers of one core")
    axes.set_ylabel("Efficiency, %")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
