"""Overheads: what a small job costs from shell prompt to shell prompt, and what a million chunks cost to plan."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.data import DataSet, stored
from benchmarks.settings import ROOT, Settings, say
from pipelines import LeastSquares
from pipelines.engine import build
from pipelines.inputs import open_inputs
from pipelines.matrix import System
from pipelines.meter import Work
from pipelines.methods.problem import factor_pass
from pipelines.passes.verify import Verify
from pipelines.plan import layout_of

TIMES = 5
"""Runs of each command."""
CHUNKS, COLUMNS, CHUNK_ROWS = 1_000_000, 256, 8192


def measure(settings: Settings) -> dict[str, Any]:
    """The small job, the light commands, and the large graph."""
    times = 1 if settings.quick else TIMES
    with stored(DataSet(settings.folder, rows=100, columns=5, chunk_rows=100)) as data:
        job_file = Path(data.A).parent / "job.yaml"
        job_file.write_text(
            f"matrix: {data.A}\nrhs: {data.b}\noutput: {data.result}\noverwrite: true\nkind: least_squares\n"
        )
        commands = {
            "run": ["run", str(job_file)],
            "--help": ["--help"],
            "check": ["check", str(job_file)],
            "show": ["show", data.result],
        }
        seconds = {name: _shell(words, times) for name, words in commands.items()}
        steps = _steps(job_file, times)
    return {"commands": seconds, "steps": steps, "graph": graph(settings.folder, times)}


def _shell(words: Sequence[str], times: int) -> dict[str, Any]:
    """Seconds of a command from its start to its end, once more beforehand so that the disk is warm."""
    command = [str(Path(sys.executable).with_name("tallgrass")), *words]
    each = [_seconds(command) for _ in range(times + 1)][1:]
    say(f"  tallgrass {words[0]}: {median(each):.3f} s")
    return {"median": median(each), "min": min(each), "max": max(each), "each": each}


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - began


def _steps(job_file: Path, times: int) -> dict[str, float]:
    """Where the time of `run` goes: the median of each step, in the order in which they happen."""
    runs = [_one_run(job_file) for _ in range(times)]
    steps = {step: median(run[step] for run in runs) for step in runs[0]}
    say("  " + ", ".join(f"{step} {seconds:.2f} s" for step, seconds in steps.items()))
    return steps


def _one_run(job_file: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.steps", str(job_file), str(time.time())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ended = time.time()
    found = json.loads(done.stdout)
    seconds: dict[str, float] = found["seconds"]
    return seconds | {"end the process": ended - found["ended"]}


def graph(folder: Path, times: int) -> dict[str, Any]:
    """Seconds and tasks of both passes over a matrix of a million chunks, of which only the metadata is there."""
    data = DataSet(folder, CHUNKS * CHUNK_ROWS, COLUMNS, CHUNK_ROWS)
    with stored(data, filled=False):
        each, tasks = zip(*(_build(data) for _ in range(times)), strict=True)
    say(f"  graphs of {CHUNKS:,} chunks: {median(each):.2f} s, {tasks[0]:,} tasks")
    size = {"chunks": data.chunks, "rows": data.rows, "columns": data.columns, "bytes": data.bytes}
    return size | {"tasks": tasks[0], "seconds": median(each)}


def _build(data: DataSet) -> tuple[float, int]:
    """Seconds to open the arrays and build both graphs, and the number of their tasks."""
    began = time.perf_counter()
    inputs = open_inputs(LeastSquares(matrix=data.A, rhs=data.b), run="graph")
    layout = layout_of(LeastSquares(matrix=data.A, rhs=data.b), inputs)
    dtype = layout.shape.dtype
    system = System(inputs.A, inputs.b, None, dtype, omit_rows=False, block_rows=layout.block_rows)
    work = Work(system, layout.spans, layout.shape.row_bytes)
    steps: tuple[Any, ...] = (
        factor_pass(layout),
        Verify(np.zeros((COLUMNS, 1)), np.ones(COLUMNS), dtype, layout.slab_rows),
    )
    graphs = [build(step, work, f"run{number}")[0] for number, step in enumerate(steps)]
    seconds = time.perf_counter() - began
    # Apart from its tasks, a graph holds the pass and the system once each.
    return seconds, sum(len(one) - 2 for one in graphs)
