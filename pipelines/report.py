"""Plans and results as plain text for a person: at most 100 columns, the most important thing first."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.units import counted, format_bytes, format_count, format_seconds

WIDTH = 100
"""Columns of a line at most."""
_INDENT = "  "


def render_plan(plan: Mapping[str, Any]) -> str:
    """What a job will cost, as text: method and reason, passes, memory, time; takes Plan.to_dict()."""
    blocks = [
        _wrapped(_headline(plan)),
        _labelled([("why", plan.get("reason")), ("layout", _layout(plan)), ("cluster", _cluster(plan))]),
        _table(_pass_rows(plan), left={0, 5}),
        _labelled([("memory", _memory(plan)), ("spans", _spans(plan)), ("rates", plan.get("rates"))]),
        _warnings(plan),
    ]
    return "\n\n".join(filter(None, blocks))


def _headline(plan: Mapping[str, Any]) -> str:
    m, n, k = (*plan.get("shape", ()), None, None, None)[:3]
    what = f"{plan.get('kind', 'job')} by {plan.get('method', 'auto')}"
    if m is None:
        return what
    right_hand_sides = counted(k, "right-hand side") if k is not None else ""
    matrix = f"A is {m:,} × {n:,}" + (" synthetic" if plan.get("synthetic") else "")
    return f"{what}: " + ", ".join(
        filter(None, [f"{matrix} {plan.get('dtype', '')}".strip(), plan.get("orientation"), right_hand_sides])
    )


def _layout(plan: Mapping[str, Any]) -> str:
    shards = plan.get("shards")
    parts = [_sized("chunks of", plan.get("chunks")), _sized("shards of", shards)]
    return ", in ".join(filter(None, parts))


def _sized(what: str, shape: Sequence[int] | None) -> str:
    return f"{what} {' × '.join(f'{length:,}' for length in shape)}" if shape else ""


def _cluster(plan: Mapping[str, Any]) -> str:
    workers, threads, memory = (plan.get(name) for name in ("workers", "threads", "memory_bytes_per_worker"))
    parts = [
        counted(workers, "worker") if workers else "",
        f"{counted(threads, 'thread')} each" if threads else "",
        f"{format_bytes(memory)} each" if memory else "",
    ]
    return ", ".join(filter(None, parts))


def _pass_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    passes = plan.get("passes") or []
    if not passes:
        return []
    rows = [[str(one.get("name", "")), *_costs(one), str(one.get("limit", ""))] for one in passes]
    header = ["pass", "makes" if plan.get("synthetic") else "reads", "flops", "tasks", "time", "limited by"]
    return [header, *rows, ["total", *_costs(plan), ""]]


def _costs(one: Mapping[str, Any]) -> list[str]:
    return [
        format_bytes(one.get("bytes", 0)),
        format_count(one.get("flops", 0), "flop"),
        f"{one.get('tasks', 0):,}",
        format_seconds(one.get("seconds", 0)),
    ]


def _memory(plan: Mapping[str, Any]) -> str:
    peak, limit = plan.get("peak_bytes_per_worker"), plan.get("memory_bytes_per_worker")
    if peak is None:
        return ""
    return f"{format_bytes(peak)} at the peak of a worker" + (f", of {format_bytes(limit)}" if limit else "")


def _spans(plan: Mapping[str, Any]) -> str:
    spans, rows = plan.get("spans"), plan.get("span_rows")
    if not spans or not rows:
        return ""
    inner = [("read in blocks of", "block_rows"), ("factored in slabs of", "slab_rows")]
    sizes = [f"{what} {plan[name]:,}" for what, name in inner if plan.get(name) and plan[name] < rows]
    return ", ".join([f"{counted(spans, 'span')} of {rows:,} rows", *sizes])


def render_result(summary: Mapping[str, Any]) -> str:
    """What came out and how far to trust it, as text; takes the summary of a result."""
    certificate = summary.get("certificate") or {}
    blocks = [
        _wrapped(certificate.get("statement", "")),
        _labelled(_findings(certificate)),
        _labelled(
            [
                ("rows", _rows(certificate)),
                ("time", _timings(summary)),
                *((label, _preview(summary, name)) for name, label in _FIRST.items()),
            ]
        ),
        _warnings(certificate),
        _labelled(_whereabouts(summary)),
    ]
    return "\n\n".join(filter(None, blocks))


def facts_of(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What came out and how far to trust it, each fact with its name; takes the summary of a result."""
    certificate = summary.get("certificate") or {}
    if not certificate:
        return []
    found = [*_findings(certificate), ("rows", _rows(certificate)), ("time", _timings(summary))]
    return [(label, text) for label, text in found if text]


def render_verification(found: Mapping[str, Any]) -> str:
    """What a second look at a result says, as text; takes what Verification.to_dict gives."""
    then, now = found["rank"]
    rows = [("", "stored", "now", ""), ("rank", f"{then:,}", f"{now:,}", "" if then == now else "another rank")]
    for number in found["numbers"]:
        stored = "not measured" if number["stored"] is None else f"{number['stored']:.2e}"
        stored = stored if number["most"] is None else f"at most {number['most']:.2e}"
        name = number["name"].replace("_", " ")
        rows.append((name, stored, f"{number['now']:.2e}", "does not hold" if number["holds"] is False else ""))
    verdicts = {True: "The certificate holds.", False: "The certificate does not hold any more."}
    verdict = verdicts.get(found["holds"], "The job measured nothing (`verify: false`); these are the numbers now.")
    changed = " and the ".join(found["changed"])
    note = f"note: chunks of the {changed} were written, or have changed, since the result was made." if changed else ""
    return "\n\n".join(filter(None, [verdict, _table(rows, {0, 3}), note and _wrapped(note, hanging="      ")]))


def _findings(certificate: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [
        ("rank", _rank(certificate)),
        ("backward error", _measured(certificate, "backward_error")),
        ("reconstruction", _relative(certificate, "reconstruction_error", "‖A‖")),
        ("best possible", _relative(certificate, "best_error", "‖A‖")),
        ("error of values", _relative(certificate, "values_error", "the largest")),
        ("orthogonality", _number(certificate.get("orthogonality"))),
        ("Penrose", _penrose(certificate.get("penrose") or {})),
        ("ridge error", _number(certificate.get("ridge_error"))),
        ("forward error", _forward(certificate)),
        ("condition number", _condition(certificate)),
        ("residual norm", _residual(certificate)),
        ("singular values", _singular_values(certificate.get("singular_values") or {})),
        ("refinement", _refinement(certificate)),
    ]


def _rank(certificate: Mapping[str, Any]) -> str | None:
    rank, n = certificate.get("rank"), certificate.get("n")
    if rank is None:
        return None
    full = "" if certificate.get("full_rank") is None else ", full" if certificate["full_rank"] else ", deficient"
    rule, reason = certificate.get("rtol_rule"), certificate.get("rtol_reason")
    tolerance = f"; rtol {_number(certificate['rtol'])}" if certificate.get("rtol") is not None else ""
    why = ": ".join(str(part) for part in (rule, reason) if part)
    of = f" of {n:,}" if n is not None else ""
    if (found := certificate.get("found")) is not None:
        return f"{rank:,} at least, among {found:,} values that were looked at; {tolerance[2:]}"
    return f"{rank:,}{of}{full}{tolerance}" + (f" ({why})" if why else "")


def _measured(certificate: Mapping[str, Any], name: str) -> str | None:
    if name in certificate and certificate.get("verified") is False and certificate[name] is None:
        return "not measured: verify is false"
    return _number(certificate.get(name))


def _relative(certificate: Mapping[str, Any], name: str, norm: str) -> str | None:
    value = certificate.get(name)
    return f"{_number(value)} of {norm}" if value is not None else None


def _penrose(residuals: Mapping[str, Any]) -> str:
    return ", ".join(f"{condition}: {_number(value)}" for condition, value in residuals.items())


def _forward(certificate: Mapping[str, Any]) -> str | None:
    bound, digits = certificate.get("forward_error_bound"), certificate.get("correct_digits")
    if bound is None:
        return None
    about = f"; about {digits:.0f} correct digits" if digits is not None else ""
    return f"at most {_number(bound)}{about}"


def _condition(certificate: Mapping[str, Any]) -> str | None:
    scaled = _number(certificate.get("scaled_condition_number"))
    after = f"; {scaled} with columns scaled to length one" if scaled else ""
    least = "at least " if certificate.get("found") is not None else ""
    return f"{least}{_number(certificate['condition_number'])}{after}" if "condition_number" in certificate else None


def _residual(certificate: Mapping[str, Any]) -> str | None:
    norms, relative = certificate.get("residual_norm"), certificate.get("relative_residual")
    if norms is None:
        return None
    listed = ", ".join(_number(norm, digits=6) or "" for norm in norms)
    return listed + (f" ({_number(relative)} of the right-hand side)" if relative is not None else "")


def _singular_values(values: Mapping[str, Any]) -> str | None:
    if values.get("largest") is None:
        return None
    about = "about " if values.get("estimated") else ""
    text = f"{about}{_number(values['largest'])} down to {_number(values.get('smallest'))}"
    kept, dropped = values.get("kept_smallest"), values.get("dropped_largest")
    if kept is None or dropped is None:
        return text
    gap = values.get("gap_at_cut")
    times = f", {_number(gap)} times apart" if gap is not None else ""
    return f"{text}; the cut lies between {_number(kept)} (kept) and {_number(dropped)} (dropped){times}"


def _refinement(certificate: Mapping[str, Any]) -> str | None:
    if certificate.get("refined") is None:
        return None
    return "one step, which made the backward error smaller" if certificate["refined"] else "not needed"


def _rows(certificate: Mapping[str, Any]) -> str | None:
    used, omitted = certificate.get("rows_used"), certificate.get("rows_omitted")
    if used is None:
        return None
    return f"{used:,} used" + (f", {omitted:,} omitted for NaN or infinity" if omitted else "")


def _timings(summary: Mapping[str, Any]) -> str:
    timings = summary.get("timings") or {}
    times = {name: value for name, value in timings.items() if isinstance(value, int | float)}
    total = times.pop("total", None)
    parts = ", ".join(f"{name} {format_seconds(value)}" for name, value in times.items())
    return parts if total is None else format_seconds(total) + (f": {parts}" if parts else "")


def _preview(summary: Mapping[str, Any], name: str) -> str | None:
    first = (summary.get("preview") or {}).get(name)
    if not first or isinstance(first[0], list | Mapping):
        return None
    shape = (summary.get("plan") or {}).get("shape") or (0, 0)
    n = shape[1] if name == "x" else min(shape[:2])
    shown = ", ".join(_number(value) or "NaN" for value in first)
    return shown if n <= len(first) else f"{shown}, ..." + (f" ({n:,} in all)" if name == "x" else "")


_FIRST = {"x": "x", "s": "s", "ratio": "variance"}
"""What a summary shows the first numbers of, and what it calls them."""
_MAIN = {"pca": '["components"]', "qr": '["R"]', "svd": '["s"]', "pseudoinverse": '["pinv"]', "low_rank": '["L"]'}
"""What people want first of a result, by kind of job; of least squares it is x."""


def _whereabouts(summary: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    kind = str(summary.get("kind"))
    output = summary.get("url") or (summary.get("job") or {}).get("output")
    if output is None:
        return []
    return [("arrays", str(output)), ("in Python", f"from pipelines import {_opened(kind, summary, str(output))}")]


def _opened(kind: str, summary: Mapping[str, Any], output: str) -> str:
    """What people want first of a result, in Python."""
    job = summary.get("job") or {}
    if (summary.get("form") or job.get("form")) in ("operator", "implicit"):
        return f'operator_of; operator_of("{output}")'
    main = f'["{job["compute"][0]}"]' if kind == "apply" else _MAIN.get(kind, ".x")
    if kind == "pca_transform":
        main = '["reconstruction"]' if job.get("inverse") else '["scores"]'
    return f'open_result; open_result("{output}"){main}'


def render_findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """What the doctor found, as text; takes dicts of name, ok, detail and advice."""
    width = max((len(finding["name"]) for finding in findings), default=0) + 2
    hanging = " " * (width + 8)
    lines = []
    for finding in findings:
        mark = "ok" if finding["ok"] else "not ok"
        lines.append(_wrapped(f"{mark:<8}{finding['name']:<{width}}{finding['detail']}", hanging))
        if not finding["ok"] and finding.get("advice"):
            lines.append(_wrapped(f"{hanging}{finding['advice']}", hanging))
    return "\n".join(lines)


def _number(value: Any, digits: int = 3) -> str | None:
    """A few digits, as a person writes them: 0.0123, 4.2e+05."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else None if value is None else str(value)


def _warnings(holder: Mapping[str, Any]) -> str:
    notes = [_wrapped(f"note: {text}", hanging="      ") for text in holder.get("warnings") or []]
    return "\n".join(notes)


def _labelled(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Lines of label and text, the texts aligned; what has no text is left out."""
    kept = [(label, text) for label, text in pairs if text]
    width = max((len(label) for label, _ in kept), default=0) + 2
    return "\n".join(
        _wrapped(f"{_INDENT}{label:<{width}}{text}", hanging=" " * (width + len(_INDENT))) for label, text in kept
    )


def _table(rows: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [cell.ljust(width) if place in left else cell.rjust(width) for place, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in rows)
    )
    return "\n".join((_INDENT + "   ".join(cells)).rstrip() for cells in lines)


def _wrapped(text: str, hanging: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )
