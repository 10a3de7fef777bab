"""A finished job on one page that needs no network: what it found, how far to trust it, what it took."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from pipelines.report import facts_of
from pipelines.units import format_bytes, format_rate
from workers import api
from workers.pages import Axes, logarithms, template
from workers.render import took

AXES = (60, 410, 10, 190)
"""Left, right, top and bottom of a plot, in pixels."""
MOST_BARS = 200
"""Right-hand sides whose residuals are drawn."""


def render_report(job: api.JobDetails, lines: Sequence[api.LogLine]) -> str:
    """The page, as HTML with nothing outside of it; whatever names and letters contain, they are text."""
    summary = job.summary or {}
    letter = job.error.message if job.error else summary.get("certificate", {}).get("statement", "")
    text: str = template("report.html").render(
        job=job,
        letter=letter,
        submitted=f"{job.submitted_at:%Y-%m-%d %H:%M} UTC",
        took=took(job) if job.over else "",
        facts=facts_of(summary),
        warnings=summary.get("certificate", {}).get("warnings") or [],
        plots=_plots(job, summary),
        passes=_passes(job, summary.get("plan", {})),
        memory=_memory(job, summary.get("plan", {})),
        yaml=_yaml(job.job),
        inputs=_inputs(summary),
        lines=[f"{line.at:%H:%M:%S}  {line.text}" for line in lines],
    )
    return text


def _passes(job: api.JobDetails, plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each pass as it was planned beside what it did; one that was not needed has nothing to tell."""
    planned = {one["name"]: one for one in plan.get("passes", [])}
    done = {one.name: one for one in (job.progress.passes if job.progress else [])}
    return [_pass(name, planned.get(name), done.get(name)) for name in dict.fromkeys([*planned, *done])]


def _pass(name: str, planned: Mapping[str, Any] | None, done: api.PassReport | None) -> dict[str, str]:
    return {
        "name": name,
        "planned_bytes": format_bytes(planned["bytes"]) if planned else "",
        "planned_seconds": f"{planned['seconds']:.2f}" if planned else "",
        "bytes": format_bytes(done.bytes) if done else "not needed",
        "seconds": f"{done.seconds:.2f}" if done else "",
        "rate": format_rate(done.bytes / done.seconds) if done and done.seconds else "",
    }


def _memory(job: api.JobDetails, plan: Mapping[str, Any]) -> str:
    planned = f"planned for at most {format_bytes(plan['peak_bytes_per_worker'])} a worker" if plan else ""
    held = job.progress.memory_bytes if job.progress else 0
    seen = f"the fullest worker held {format_bytes(held)} when it was looked at" if held else ""
    return "Memory: " + "; ".join(filter(None, [planned, seen])) + "." if planned or seen else ""


def _yaml(job: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    text, yaml = StringIO(), YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(job), text)
    return text.getvalue()


def _inputs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, one in summary.get("input", {}).items():
        shape = " × ".join(f"{length:,}" for length in one["shape"])
        rows.append((name, f"{one['url']}, {shape} {one['dtype']}, fingerprint {one['fingerprint']}"))
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items() if version)
    return [*rows, ("versions", versions)] if versions else rows


def _plots(job: api.JobDetails, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    spectrum = job.progress.spectrum if job.progress else []
    residuals = summary.get("certificate", {}).get("residual_norm") or []
    residuals = [residuals] if isinstance(residuals, int | float) else list(residuals)
    found = [_line("singular values, from the largest to the smallest", spectrum)]
    if len(residuals) > 1:
        found.append(_bars("residual norm of each right-hand side", residuals[:MOST_BARS]))
    return [plot for plot in found if plot is not None]


def _line(title: str, values: Sequence[float]) -> dict[str, Any] | None:
    """On a logarithmic scale."""
    logs = logarithms(values)
    if not logs:
        return None
    axes = Axes(*AXES, min(logs), max(logs))
    middle = (axes.low + axes.high) / 2
    ticks = [(round(axes.y(t), 1), f"{10**t:.2g}") for t in (axes.low, middle, axes.high)]
    return {"title": title, "points": axes.line(logs), "ticks": ticks, "last": len(values)}


def _bars(title: str, values: Sequence[float]) -> dict[str, Any]:
    axes = Axes(*AXES, 0.0, max(values) or 1.0)
    width = (axes.right - axes.left) / len(values)
    bars = [
        {"x": round(axes.left + i * width, 1), "y": round(axes.y(v), 1), "width": round(0.8 * width, 2),
         "height": round(axes.bottom - axes.y(v), 1)}
        for i, v in enumerate(values)
    ]  # fmt: skip
    ticks = [(round(axes.y(t), 1), f"{t:.3g}") for t in (0.0, axes.high / 2, axes.high)]
    return {"title": title, "bars": bars, "ticks": ticks, "last": len(values)}
