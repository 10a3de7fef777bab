"""Plans and results as text: complete, aligned, at most 100 columns."""

from pipelines.report import WIDTH, render_findings, render_plan, render_result

PLAN = {
    "kind": "least_squares",
    "method": "tsqr",
    "reason": "as accurate as LAPACK at any condition number, in one pass; R is 255 × 255, 508 KiB",
    "shape": (336_776, 254, 1),
    "dtype": "float64",
    "orientation": "tall",
    "chunks": (8192, 254),
    "shards": None,
    "passes": (
        {"name": "factor", "bytes": 684_328_832, "flops": 43.4e9, "tasks": 42, "seconds": 1.9, "limit": "arithmetic"},
        {"name": "verify", "bytes": 684_328_832, "flops": 0.7e9, "tasks": 42, "seconds": 0.62, "limit": "reading"},
    ),
    "spans": 21,
    "span_rows": 16_384,
    "block_rows": 8192,
    "slab_rows": 512,
    "tasks": 84,
    "bytes": 1_368_657_664,
    "flops": 44.1e9,
    "seconds": 2.52,
    "peak_bytes_per_worker": 212 * 2**20,
    "memory_bytes_per_worker": 2**30,
    "workers": 2,
    "threads": 1,
    "rates": "nominal",
    "warnings": ("The matrix carries no checksums: " + "damage to stored bytes could go unseen. " * 3,),
}

CERTIFICATE = {
    "statement": "These coefficients are the exact least-squares solution of a matrix that differs from yours by "
    "3 parts in 10¹⁶; expect about 11 correct digits.",
    "verified": True,
    "rank": 249,
    "n": 254,
    "full_rank": False,
    "rtol": 7.5e-11,
    "rtol_rule": "numpy",
    "rtol_reason": "max(m, n)·eps",
    "condition_number": 4.2e5,
    "scaled_condition_number": 311.0,
    "backward_error": 3.1e-16,
    "forward_error_bound": 1.2e-11,
    "correct_digits": 11,
    "residual_norm": [12345.678],
    "relative_residual": 0.41,
    "singular_values": {
        "largest": 1024.3,
        "smallest": 0.002,
        "gap_at_cut": "inf",
        "kept_smallest": 0.002,
        "dropped_largest": 0.0,
        "estimated": False,
    },
    "refined": True,
    "rows_used": 327_346,
    "rows_omitted": 9430,
    "warnings": ["5 columns are combinations of others"],
}

SUMMARY = {
    "job": {"output": "results/flights.zarr"},
    "plan": {"shape": (336_776, 254, 1)},
    "certificate": CERTIFICATE,
    "timings": {"factor": 1.9, "verify": 0.9, "total": 3.1},
    "preview": {"x": [0.1234, -4.5e-5, 12.3, 7]},
}


def squeezed(text):
    """The text with its line breaks and alignment taken out."""
    return " ".join(text.split())


def test_a_plan_says_what_it_will_cost():
    text = squeezed(render_plan(PLAN))
    for part in (
        "least_squares by tsqr: A is 336,776 × 254 float64, tall, 1 right-hand side",
        "why as accurate as LAPACK at any condition number",
        "layout chunks of 8,192 × 254",
        "cluster 2 workers, 1 thread each, 1.0 GiB each",
        "factor 653 MiB 43.4 Gflop 42 1.9 s arithmetic",
        "verify 653 MiB 700 Mflop 42 0.62 s reading",
        "total 1.3 GiB 44.1 Gflop 84 2.5 s",
        "memory 212 MiB at the peak of a worker, of 1.0 GiB",
        "spans 21 spans of 16,384 rows, read in blocks of 8,192, factored in slabs of 512",
        "rates nominal",
        "note: The matrix carries no checksums",
    ):
        assert part in text


def test_a_result_begins_with_what_its_certificate_means_and_ends_with_how_to_open_it():
    text = render_result(SUMMARY)
    assert squeezed(text).startswith(CERTIFICATE["statement"])
    assert text.splitlines()[-1].strip() == (
        'in Python  from pipelines import open_result; open_result("results/flights.zarr").x'
    )


def test_a_result_says_how_far_to_trust_it():
    text = squeezed(render_result(SUMMARY))
    for part in (
        "rank 249 of 254, deficient; rtol 7.5e-11 (numpy: max(m, n)·eps)",
        "backward error 3.1e-16",
        "forward error at most 1.2e-11; about 11 correct digits",
        "condition number 4.2e+05; 311 with columns scaled to length one",
        "residual norm 12345.7 (0.41 of the right-hand side)",
        "1.02e+03 down to 0.002; the cut lies between 0.002 (kept) and 0 (dropped), inf times apart",
        "refinement one step, which made the backward error smaller",
        "rows 327,346 used, 9,430 omitted for NaN or infinity",
        "time 3.1 s: factor 1.9 s, verify 0.90 s",
        "x 0.123, -4.5e-05, 12.3, 7, ... (254 in all)",
        "note: 5 columns are combinations of others",
        "arrays results/flights.zarr",
    ):
        assert part in text


def test_an_unverified_result_says_that_its_error_is_not_known():
    certificate = CERTIFICATE | {"verified": False, "backward_error": None, "forward_error_bound": None}
    text = squeezed(render_result({"certificate": certificate}))
    assert "backward error not measured: verify is false" in text
    assert "forward error" not in text


def test_values_that_are_not_finite_are_shown_as_they_are():
    certificate = CERTIFICATE | {"residual_norm": ["nan"], "condition_number": "inf", "relative_residual": float("nan")}
    text = squeezed(render_result({"certificate": certificate}))
    assert "residual norm nan (nan of the right-hand side)" in text
    assert "condition number inf" in text


def test_no_line_is_longer_than_the_page():
    lines = (render_plan(PLAN) + "\n" + render_result(SUMMARY)).splitlines()
    assert max(map(len, lines)) <= WIDTH


def test_what_is_missing_is_left_out():
    assert render_plan({}) == "job by auto"
    assert render_result({}) == ""
    assert "None" not in render_plan({"kind": "x", "shape": (1, 2, 3)}) + render_result({"certificate": {"rank": 1}})


def test_findings_are_listed_with_what_to_do_about_them():
    text = render_findings(
        [
            {"name": "Python", "ok": True, "detail": "3.13", "advice": "Use another."},
            {"name": "disk", "ok": False, "detail": "1.0 GiB free", "advice": "Free 2.0 GiB."},
        ]
    )
    assert [squeezed(line) for line in text.splitlines()] == [
        "ok Python 3.13",
        "not ok disk 1.0 GiB free",
        "Free 2.0 GiB.",
    ]
