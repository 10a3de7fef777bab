"""A page "Jobs" on Dask's dashboard, served by the scheduler beside its other pages.

An agent shows the scheduler what its jobs do (`show`), and the scheduler shows it to browsers through the websocket
that Bokeh keeps open: no browser asks the queue for anything.  A scheduler that runs elsewhere gets the page by
`dask scheduler --preload workers.clusters.preload`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.units import format_bytes, format_clock
from workers.api import PassReport
from workers.lifecycle import ACTIVE, OVER, State
from workers.pages import Axes, figures, logarithms, part_of, template

PAGE = "/jobs"
EXTENSION = "tallgrass-jobs"
"""Where the scheduler keeps what it was shown last."""
EVERY = 500
"""Milliseconds between two looks at what has changed."""
WIDTH, HEIGHT = 180, 64
"""Of a spectrum, in pixels."""
SHOWN = 100
"""Jobs on the page."""


def show(board: Mapping[str, Any], dask_scheduler: Any = None) -> None:
    """Called on the scheduler: what the page shows from now on."""
    dask_scheduler.extensions[EXTENSION] = board


def register() -> None:
    """Add the page, and its place in the navigation, before the dashboard is built."""
    from distributed.dashboard import scheduler

    if PAGE in scheduler.applications:
        return
    scheduler.applications[PAGE] = jobs_document
    scheduler.template_variables = _with_jobs(scheduler.template_variables)


def _with_jobs(variables: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def with_jobs(scheduler: Any) -> dict[str, Any]:
        found = variables(scheduler)
        name = PAGE.lstrip("/")
        return found | {"pages": [name, *(page for page in found["pages"] if page != name)]}

    return with_jobs


def jobs_document(scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    """The page, for one browser."""
    from bokeh.models.widgets.markups import Div
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    arguments = document.session_context.request.arguments if document.session_context else {}
    chosen = (arguments.get("job") or [b""])[0].decode(errors="replace")
    page = Div(text=render(scheduler.extensions.get(EXTENSION) or {}, chosen), sizing_mode="stretch_width")

    def update() -> None:
        text = render(scheduler.extensions.get(EXTENSION) or {}, chosen)
        if text != page.text:
            page.text = text

    document.add_periodic_callback(update, EVERY)
    document.title = "Tallgrass: Jobs"
    document.add_root(page)
    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)
    document.theme = BOKEH_THEME


def render(board: Mapping[str, Any], chosen: str = "") -> str:
    """The page's body; names and letters are text, whatever they contain."""
    board = {"counts": {}, "jobs": []} | dict(board)
    jobs = [_shown(job, board.get("server")) for job in board["jobs"]]
    groups = [
        ("Running", [job for job in jobs if job["state"] in ACTIVE]),
        ("Waiting", [job for job in jobs if job["state"] == State.QUEUED]),
        ("Finished", [job for job in jobs if job["state"] in OVER]),
    ]
    mine = [job for job in jobs if chosen and job["id"] == chosen]
    groups = [("This job", mine), *((title, [j for j in found if j not in mine]) for title, found in groups)]
    text: str = template("jobs.html").render(board=board, groups=[group for group in groups if group[1]], chosen=chosen)
    return text


def _shown(job: Mapping[str, Any], server: str | None) -> dict[str, Any]:
    progress = job.get("progress") or {"passes": []}
    running = job["state"] in ACTIVE
    workers = f"{progress['workers']} workers, {format_bytes(progress['memory_bytes'])} in the fullest" if (
        running and progress.get("workers")
    ) else ""  # fmt: skip
    return {
        **{name: job[name] for name in ("id", "name", "kind", "state", "attempt")},
        "time": _time(job),
        "passes": [_pass(one) for one in progress["passes"]],
        "workers": workers,
        "report": f"{server}/v1/jobs/{job['id']}/report" if server and job["state"] in OVER else "",
        "letter": job.get("letter") or "",
        "plot": _plot(progress.get("spectrum") or []),
    }


def _time(job: Mapping[str, Any]) -> str:
    if job["state"] == State.QUEUED:
        return f"waits for {format_clock(max(0.0, time.time() - job['submitted_at']))}"
    if not job.get("started_at"):
        return ""
    end = job.get("finished_at") or time.time()
    return f"{'took' if job.get('finished_at') else 'for'} {format_clock(max(0.0, end - job['started_at']))}"


def _pass(one: Mapping[str, Any]) -> dict[str, Any]:
    report = PassReport.model_validate(one)
    done = {"name": report.name, "done": report.done}
    return done | {"percent": round(100 * part_of(report)), "figures": figures(report)}


def _plot(spectrum: Sequence[float]) -> dict[str, str] | None:
    """Singular values on a logarithmic scale, the largest on the left."""
    logs = logarithms(spectrum)
    if not logs:
        return None
    axes = Axes(0, WIDTH, 12, HEIGHT - 12, min(logs), max(logs))
    ends = {"largest": f"{10**axes.high:.3g}", "smallest": f"{10**axes.low:.3g}"}
    return {"points": axes.line(logs), **ends}


def spectrum_of(arrays: Mapping[str, Any], most: int = 60) -> list[float]:
    """Some of a result's singular values, from the largest to the smallest: enough for a small plot."""
    for name in ("singular_values", "s"):
        if name in arrays and getattr(arrays[name], "ndim", 0) == 1:
            values = [float(value) for value in arrays[name]]
            step = max(1, math.ceil(len(values) / most))
            return values if step == 1 else [*values[::step], values[-1]]
    return []
