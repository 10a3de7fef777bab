"""Jobs of a server as text for people."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pipelines.units import format_clock
from workers import api
from workers.lifecycle import State
from workers.pages import figures, part_of

BAR = 24
"""Characters of a progress bar."""


def job_table(jobs: Sequence[api.Job]) -> str:
    """A line for each job."""
    if not jobs:
        return "no jobs"
    rows = [("ID", "NAME", "KIND", "STATE", "SUBMITTED", "TOOK", "PROGRESS")]
    for job in jobs:
        submitted = f"{job.submitted_at.astimezone():%Y-%m-%d %H:%M}"
        rows.append((job.id, _short(job.name), job.kind, str(job.state), submitted, took(job), _progress(job)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def job_status(job: api.JobDetails) -> str:
    """All that a person wants to know of one job."""
    lines = [f"{job.id}  {job.name}: {_state(job)}", ""]
    lines += [f"  {name:10}{text}" for name, text in _facts(job)]
    if job.progress is not None and job.progress.passes:
        lines += ["", *(f"  {_pass(one)}" for one in job.progress.passes)]
    if job.summary is not None:
        lines += ["", job.summary["certificate"]["statement"]]
    if job.error is not None:
        lines += ["", job.error.message]
    return "\n".join(lines)


def _facts(job: api.JobDetails) -> list[tuple[str, str]]:
    facts = [
        ("kind", job.kind),
        ("output", job.output or ""),
        ("submitted", f"{job.submitted_at.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("attempt", str(job.attempt) if job.attempt else ""),
        ("took", took(job)),
        ("priority", str(job.priority) if job.priority else ""),
        ("retry of", job.retry_of or ""),
        ("dashboard", job.dashboard or ""),
    ]
    return [(name, text) for name, text in facts if text]


def _state(job: api.JobDetails) -> str:
    if job.state is State.QUEUED:
        return f"queued, {job.ahead} ahead of it" if job.ahead else "queued, next in turn"
    if job.exit_code:
        return f"{job.state}, exit code {job.exit_code}"
    return str(job.state)


def _pass(one: api.PassReport) -> str:
    full = round(BAR * part_of(one))
    return f"{one.name:14} {'█' * full}{'░' * (BAR - full)} {figures(one)}"


def _progress(job: api.Job) -> str:
    if job.state not in (State.STARTING, State.RUNNING, State.STOPPING) or job.progress is None:
        return "" if not job.error else f"exit code {job.exit_code}"
    if not job.progress.passes:
        return ""
    last = job.progress.passes[-1]
    return f"{last.name} {100 * last.rows // max(1, last.of_rows)} %"


def took(job: api.Job) -> str:
    """The time of its latest attempt, so far."""
    if job.started_at is None:
        return ""
    end = job.finished_at or datetime.now(UTC)
    return format_clock(max(0.0, (end - job.started_at).total_seconds()))


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"
