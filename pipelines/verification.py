"""A stored result held against its input once more: does its certificate still hold?"""

import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.engine import Engine, one_blas_thread
from pipelines.errors import BadData, PlanRefused
from pipelines.execute import passes_of, resources_of
from pipelines.inputs import open_inputs
from pipelines.kinds import resolved
from pipelines.kinds.base import Work
from pipelines.kinds.recheck import RECHECKS
from pipelines.kinds.recheck.base import Compared
from pipelines.layout import Layout
from pipelines.load import job_of
from pipelines.matrix import NAMES
from pipelines.plan import layout_of, plan_of, this_machine
from pipelines.progress import Listener, ignore
from pipelines.rates import load_rates
from pipelines.result import Result, open_result, whole
from pipelines.small.backward import U
from pipelines.small.rounding import unit
from pipelines.storage import describe

MEASURED = ("backward_error", "forward_error_bound", "reconstruction_error", "orthogonality", "penrose", "ridge_error")
"""Numbers of a certificate that a read of the input measures; the smaller, the better."""
SUMMED = ("reconstruction_error", "orthogonality")
"""Those that the stored arrays determine up to a few roundings; the others are made of roundings, enlarged by κ."""
ROUNDINGS = 64.0
"""Roundoffs, times √n, that no number need be below."""
SAME, WORSE = 1 + 1e-6, 10.0
"""How many times larger a number of each sort may be than it was: another processor rounds differently."""


@dataclass(frozen=True)
class Number:
    """One number of a certificate, then and now; or by an array's name, how far it is from what it has to be."""

    name: str
    stored: float | None
    """What the certificate says; None where the job was not asked to measure it."""
    now: float
    holds: bool | None
    """None when there is nothing to compare with."""
    most: float | None = None
    """What rounding allows at the most, for an array that no number of the certificate tells of."""


@dataclass(frozen=True)
class Verification:
    """What a read of the input says of a stored result."""

    holds: bool | None
    """True when each number is as good as it has to be, and the rank is the same; None where something that was never
    measured has none to be held against."""
    rank: tuple[int, int]
    """As stored, and as found now."""
    numbers: tuple[Number, ...]
    changed: tuple[str, ...]
    """Inputs of which chunks were written, or have changed, since the result was made."""
    statement: str
    """The certificate in words, as it would be today."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def verify(result: Result | str, client: Any = None, listener: Listener = ignore, *, job: Any = None) -> Verification:
    """Measure a stored result on its input again, with a few reads of both; nothing is written.

    `job` takes the place of the one that the result names, when its arrays have moved; `client` is a
    distributed.Client, and without one the reads run in this process.

    Raises:
        BadData: the result or its input is missing, damaged, or of another shape than it was.
        PlanRefused: the result lives in memory only.
    """
    found = open_result(result) if isinstance(result, str) else result
    if found.url is None:
        raise PlanRefused(
            "This result lives in memory only. Give the job an output, or the address of a stored result."
        )
    job = job or job_of(_described(found), "the job of this result")
    job = job.model_copy(update={"fingerprint": found.summary["job"].get("fingerprint", "stat")})
    job = resolved(job)
    inputs = open_inputs(job, uuid.uuid4().hex[:12])
    layout = layout_of(job, inputs)
    inputs = inputs.cut(layout)
    resources = resources_of(client) if client else this_machine()
    plan = plan_of(job, inputs, layout, resources, load_rates())
    engine = Engine(client, listener, job.no_progress_timeout, resources.threads)
    work = Work(job, inputs, layout, passes_of(engine, inputs, layout), None, plan.warnings)
    found = _read_again(found, layout)
    with one_blas_thread(), np.errstate(all="ignore"):  # what was spoilt may be any number, and none
        seen = RECHECKS[job.kind](work, found)
    before, certificate = found.certificate, seen.certificate
    compared = tuple(_number(one) for one in seen.compared)
    numbers = (*_numbers(before.to_dict(), certificate.to_dict(), certificate.n, unit(work.dtype)), *compared)
    return Verification(
        holds=_all_hold(numbers, before.rank == certificate.rank),
        rank=(before.rank, certificate.rank),
        numbers=numbers,
        changed=tuple(_changed(found.summary, seen.identity)),
        statement=certificate.statement,
    )


def _read_again(result: Result, layout: Layout) -> Result:
    """The result with its small arrays as they are stored now; those with a row for each of the system wait.

    Raises:
        BadData: one of them is missing or damaged.
    """
    result, url, shape = replace(result, arrays={}), result.url, layout.shape
    assert url is not None
    with whole(str(url)):
        for name in result.names:
            if shape.rows <= shape.columns or shape.rows not in describe(url / name).shape:
                result[name]
    return result


def _described(result: Result) -> dict[str, Any]:
    """The job that made the result, if all that it took can be found."""
    job: dict[str, Any] = result.summary["job"]
    for name, value in job.items():
        if name in ("operator", "pca") and value == "in memory":
            raise BadData(
                f"The {name} of this result lived in the memory of a Python process. Call pipelines.verify with a job "
                "that holds it, or run the job again."
            )
        if isinstance(value, Mapping) and "array" in value:
            raise BadData(
                f"The {name} of this result was an array in the memory of a Python process ({value['array']}, shape "
                f"{tuple(value['shape'])}). Call pipelines.verify with a job that holds it, or run the job again."
            )
    return {**job, "output": str(result.url)}


def _numbers(before: Mapping[str, Any], now: Mapping[str, Any], n: int, last_digit: float) -> Any:
    least = ROUNDINGS * U * math.sqrt(max(n, 1))
    for name in MEASURED:
        found, stored = now.get(name), before.get(name)
        parts = found if isinstance(found, Mapping) else {None: found}
        for part, value in parts.items():
            if value is None:
                continue
            then = stored[part] if isinstance(stored, Mapping) else stored
            then = None if then is None else float(then)
            # X A X, but not X, is free of what its last digits add outside the span of A's rows.
            rounded = 2 * last_digit if part == "XAX = X" else 0.0
            yield Number(part or name, then, float(value), _holds(name, then, float(value), least + rounded))


def _number(one: Compared) -> Number:
    value = float(one.value)
    return Number(one.name, None, value, value <= one.most, float(one.most))


def _all_hold(numbers: tuple[Number, ...], same_rank: bool) -> bool | None:
    held = {number.holds for number in numbers}
    if False in held or not same_rank:
        return False
    return None if None in held else True


def _holds(name: str, stored: float | None, now: float, least: float) -> bool | None:
    if stored is None:
        return None
    if math.isinf(stored):
        return not math.isnan(now)
    return now <= SAME * stored + least if name in SUMMED else now <= max(least, WORSE * stored)


def _changed(summary: Mapping[str, Any], identity: tuple[int, int, int]) -> Any:
    for name, number in zip(NAMES, identity, strict=True):
        described = summary["input"].get(name)
        unknown = described is None or not int(described["fingerprint"], 16)  # versions before did not look at all
        if not unknown and described["fingerprint"] != f"{number:032x}":
            yield name
