"""A stored result held against its input once more: does its certificate still hold?"""

import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.engine import Engine, one_blas_thread
from pipelines.errors import BadData, PlanRefused
from pipelines.execute import passes_of, resources_of
from pipelines.inputs import open_inputs
from pipelines.kinds.base import Work
from pipelines.kinds.recheck import RECHECKS
from pipelines.load import job_of
from pipelines.matrix import NAMES
from pipelines.plan import layout_of, plan_of, this_machine
from pipelines.progress import Listener, ignore
from pipelines.rates import load_rates
from pipelines.result import Result, open_result
from pipelines.small.backward import U

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
    """One number of a certificate, then and now."""

    name: str
    stored: float | None
    """What the certificate says; None where the job was not asked to measure it."""
    now: float
    holds: bool | None
    """None when there is nothing to compare with."""


@dataclass(frozen=True)
class Verification:
    """What a read of the input says of a stored result."""

    holds: bool | None
    """True when each number is as good as the certificate says, and the rank is the same; None where it says none."""
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
    """Measure a stored result on its input again, with 1 to 5 reads of both; nothing is written.

    `job` takes the place of the one that the result names, when its arrays have moved; `client` is a
    distributed.Client, and without one the reads run in this process.

    Raises:
        BadData: the result or its input is missing, damaged, or of another shape than it was.
        PlanRefused: a result of this kind holds nothing that could be measured.
    """
    found = open_result(result) if isinstance(result, str) else result
    if found.url is None:
        raise PlanRefused(
            "This result lives in memory only. Give the job an output, or the address of a stored result."
        )
    job = job or job_of(_described(found), "the job of this result")
    job = job.model_copy(update={"fingerprint": found.summary["job"].get("fingerprint", "stat")})
    if job.kind not in RECHECKS:
        raise PlanRefused(
            f"Results of the kind {job.kind} cannot be measured again yet; those of {', '.join(RECHECKS)} can. Run the "
            "job again to have its certificate made anew."
        )
    inputs = open_inputs(job, uuid.uuid4().hex[:12])
    layout = layout_of(job, inputs)
    inputs = inputs.cut(layout)
    resources = resources_of(client) if client else this_machine()
    plan = plan_of(job, inputs, layout, resources, load_rates())
    engine = Engine(client, listener, job.no_progress_timeout, resources.threads)
    work = Work(job, inputs, layout, passes_of(engine, inputs, layout), None, plan.warnings)
    with one_blas_thread():
        certificate, identity = RECHECKS[job.kind](work, found)
    before = found.certificate
    numbers = tuple(_numbers(before.to_dict(), certificate.to_dict(), certificate.n))
    return Verification(
        holds=_all_hold(numbers, before.rank == certificate.rank),
        rank=(before.rank, certificate.rank),
        numbers=numbers,
        changed=tuple(_changed(found.summary, identity)),
        statement=certificate.statement,
    )


def _described(result: Result) -> dict[str, Any]:
    """The job that made the result, if its arrays can be found."""
    job: dict[str, Any] = result.summary["job"]
    for name, value in job.items():
        if isinstance(value, Mapping) and "array" in value:
            raise BadData(
                f"The {name} of this result was an array in the memory of a Python process ({value['array']}, shape "
                f"{tuple(value['shape'])}). Call pipelines.verify with a job that holds it, or run the job again."
            )
    return {**job, "output": str(result.url)}


def _numbers(before: Mapping[str, Any], now: Mapping[str, Any], n: int) -> Any:
    for name in MEASURED:
        found, stored = now.get(name), before.get(name)
        parts = found if isinstance(found, Mapping) else {None: found}
        for part, value in parts.items():
            if value is None:
                continue
            then = stored[part] if isinstance(stored, Mapping) else stored
            then = None if then is None else float(then)
            yield Number(part or name, then, float(value), _holds(name, then, float(value), n))


def _all_hold(numbers: tuple[Number, ...], same_rank: bool) -> bool | None:
    compared = [number.holds for number in numbers if number.holds is not None]
    return (all(compared) and same_rank) if compared else None


def _holds(name: str, stored: float | None, now: float, n: int) -> bool | None:
    if stored is None:
        return None
    if math.isinf(stored):
        return not math.isnan(now)
    least = ROUNDINGS * U * math.sqrt(max(n, 1))
    return now <= SAME * stored + least if name in SUMMED else now <= max(least, WORSE * stored)


def _changed(summary: Mapping[str, Any], identity: tuple[int, int, int]) -> Any:
    for name, number in zip(NAMES, identity, strict=True):
        described = summary["input"].get(name)
        if described and described["fingerprint"] != f"{number:032x}":
            yield name
