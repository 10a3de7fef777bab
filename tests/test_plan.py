"""The plan: what a job will cost, from metadata alone, and a refusal with numbers and a way out for what cannot be."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from zarr.codecs import ZstdCodec

from pipelines import LeastSquares, make_plan, run
from pipelines.engine import build
from pipelines.errors import PlanRefused
from pipelines.inputs import open_inputs
from pipelines.layout import lay_out
from pipelines.matrix import System
from pipelines.meter import Work
from pipelines.methods.problem import factor_pass
from pipelines.plan import Resources, layout_of, offered_by
from pipelines.rates import NOMINAL

MIB, GIB = 2**20, 2**30
ONE = Resources(workers=1, threads=1, memory_bytes=4 * GIB)


def plan(fields, resources=ONE, **more):
    return make_plan(LeastSquares(**fields, **more), resources, NOMINAL)


def refusal(fields, resources=ONE, **more):
    with pytest.raises(PlanRefused) as caught:
        plan(fields, resources, **more)
    assert caught.value.exit_code == 3
    return str(caught.value)


# What a job will cost


def test_a_plan_reads_metadata_only_and_works_when_no_chunk_is_there(declared):
    fields = declared(2_000_000, 128, (8192, 128))
    assert plan(fields).shape == (2_000_000, 128, 1)
    assert not [file for file in Path(fields["matrix"]).rglob("*") if file.name != "zarr.json"]


def test_bytes_and_flops_are_those_of_two_passes(declared):
    m, n = 1_000_000, 96
    made = plan(declared(m, n, (8192, n), dtype="f4"))
    factor, verify = made.passes
    assert (factor.name, verify.name) == ("factor", "verify")
    assert (factor.bytes, verify.bytes, made.bytes) == (4 * m * n, 4 * m * n, 8 * m * n)
    assert (factor.flops, verify.flops) == (2 * m * (n + 1) ** 2, 4 * m * n)
    assert made.flops == factor.flops + verify.flops


def test_complex_numbers_cost_four_times_the_flops(declared):
    real, complex_ = (plan(declared(100_000, 32, (1000, 32), dtype=t)) for t in ("f8", "c16"))
    assert complex_.flops == 4 * real.flops


def test_few_right_hand_sides_are_factored_along_and_many_are_carried(declared):
    m, n = 100_000, 64
    few = plan(declared(m, n, (1000, n), k=16)).passes[0].flops
    many = plan(declared(m, n, (1000, n), k=40)).passes[0].flops
    assert few == 2 * m * (n + 16) ** 2
    assert many == 2 * m * n**2 + 4 * m * n * 40


@pytest.mark.parametrize(
    ("shape", "fields", "passes"),
    [
        ((9000, 5), {}, ["factor", "verify"]),
        ((9000, 5), {"verify": False}, ["factor"]),
        ((9000, 5), {"nan": "omit_rows"}, ["factor", "verify"]),
        ((5, 9000), {}, ["factor", "combine", "combine"]),
        ((5, 9000), {"verify": False}, ["factor", "combine"]),
        ((5, 9000), {"nan": "omit_rows"}, ["look", "factor", "combine", "combine"]),
    ],
)
def test_the_passes_are_those_that_the_run_makes(save, shape, fields, passes):
    A = np.random.default_rng(1).standard_normal(shape)
    stored = {"matrix": save("A", A, (min(1000, shape[0]), min(1000, shape[1]))), "rhs": save("b", A[:, 0])}
    job, seen = LeastSquares(**stored, **fields), []
    run(job, listener=lambda event: seen.append(event.name) if type(event).__name__ == "PassStarted" else None)
    assert [step.name for step in make_plan(job, ONE, NOMINAL).passes] == passes
    assert seen[: len(passes)] == passes  # one more comes when a refinement is called for


def test_a_wide_matrix_is_planned_over_its_columns(declared):
    made = plan(declared(64, 5_000_000, (64, 10_000)))
    assert (made.orientation, made.shape) == ("wide", (64, 5_000_000, 1))
    assert made.spans * made.span_rows >= 5_000_000
    assert made.span_rows % 10_000 == 0


def test_spans_are_whole_chunks_and_whole_shards(declared):
    chunked = plan(declared(3_000_000, 100, (7000, 100)))
    sharded = plan(declared(3_000_000, 100, (1000, 100), shards=(50_000, 100)))
    assert (chunked.span_rows % 7000, sharded.span_rows % 50_000) == (0, 0)
    assert sharded.shards == (50_000, 100)


def test_more_workers_take_less_time_and_change_nothing_that_decides_the_bits(declared):
    fields = declared(50_000_000, 100, (10_000, 100))
    few, many = plan(fields), plan(fields, Resources(1000, 1, 16 * GIB))
    assert many.seconds < few.seconds / 20
    cut = ("key", "spans", "span_rows", "block_rows", "slab_rows", "tasks", "bytes", "flops")
    assert [getattr(few, name) for name in cut] == [getattr(many, name) for name in cut]


def test_the_memory_of_a_worker_does_not_grow_with_the_rows(declared):
    short, long = (plan(declared(m, 128, (8192, 128))) for m in (10**7, 10**10))
    assert long.peak_bytes_per_worker < 1.2 * short.peak_bytes_per_worker


def test_a_plan_says_what_its_seconds_go_to(declared):
    narrow = plan(declared(10_000_000, 4, (100_000, 4)))
    broad = plan(declared(1_000_000, 1000, (1000, 1000)))
    assert (narrow.passes[0].limit, broad.passes[0].limit) == ("reading", "arithmetic")


def test_a_plan_is_plain_json(declared):
    document = plan(declared(1000, 10, (100, 10))).to_dict()
    assert json.loads(json.dumps(document))["method"] == "tsqr"


def test_the_command_plans_for_a_cluster_that_is_not_there(declared, command):
    fields = declared(10_000_000, 256, (4096, 256)) | {"output": "out"}
    done = command("plan", "job.yaml", "--workers", "1000", "--memory", "16 GiB", "--json", job=fields)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["workers"], document["memory_bytes_per_worker"]) == (1000, 16 * GIB)


# A million chunks


@pytest.mark.parametrize("shape", [(10**9, 16), (16, 10**9)])
def test_a_million_chunks_make_a_few_thousand_tasks(declared, shape):
    chunks = (1000, 16) if shape[0] > shape[1] else (16, 1000)
    job = LeastSquares(**declared(*shape, chunks))
    made = make_plan(job, ONE, NOMINAL)
    graphs = graph_of(job)
    assert made.tasks < 10_000
    assert len(graphs) <= made.passes[0].tasks + 2  # and the pass and the system, which all tasks share


def graph_of(job):
    """The graph of the pass that factors."""
    inputs = open_inputs(job, "test")
    layout = layout_of(job, inputs)
    b = None if layout.shape.wide else inputs.b
    system = System(inputs.A, b, None, layout.shape.dtype, omit_rows=False, block_rows=layout.block_rows)
    return build(factor_pass(layout), Work(system, layout.spans, layout.shape.row_bytes), "test")[0]


def test_the_number_of_tasks_is_bounded_whatever_the_rows_and_the_passes(declared):
    fields = declared(16, 10**12, (16, 100_000))
    assert plan(fields, nan="omit_rows").tasks < 4 * 5000


def test_the_plan_counts_the_tasks_of_the_graph(declared):
    job = LeastSquares(**declared(10_000_000, 100, (5000, 100)))
    assert len(graph_of(job)) == make_plan(job, ONE, NOMINAL).passes[0].tasks + 2


# What cannot be


def test_too_little_memory_is_refused_with_what_would_do(declared):
    said = refusal(declared(1_000_000, 100, (100_000, 100)), Resources(1, 1, 300 * MIB))
    assert re.match(r"A worker would need \d+ MiB and has 300 MiB: 1 thread with reads of 76\.\d MiB", said)
    rows = int(re.search(r"or write the array in chunks of about ([\d,]+) rows\.", said)[1].replace(",", ""))
    assert plan(declared(1_000_000, 100, (rows, 100)), Resources(1, 1, 300 * MIB)).shape[0] == 10**6
    needed = int(re.search(r"Give each worker at least (\d+) MiB", said)[1])
    plan(declared(1_000_000, 100, (100_000, 100)), Resources(1, 1, (needed + 1) * MIB))


def test_too_many_threads_for_the_memory_are_refused_with_one_thread_as_the_way_out(declared):
    said = refusal(declared(1_000_000, 100, (20_000, 100)), Resources(1, 16, GIB))
    assert "16 threads with reads of" in said
    assert re.search(r"Use one thread per worker \(\d+ MiB\)\.$", said)


def test_a_triangle_that_does_not_fit_is_refused_with_larger_workers_as_the_way_out(declared):
    said = refusal(declared(10**7, 30_000, (100, 30_000)))
    assert "triangles of 6.7 GiB each" in said
    assert said.endswith("use fewer and larger workers.")


def test_a_huge_compressed_chunk_is_refused_with_the_chunks_that_would_do(declared):
    said = refusal(declared(10**7, 1000, (10**7, 1000), compressors=[ZstdCodec()]))
    assert said.startswith("Chunks of 10,000,000 rows × 1,000 columns would be decoded ")
    rows = int(re.search(r"Write the array in chunks of at most ([\d,]+) rows\.", said)[1].replace(",", ""))
    fields = declared(10**7, 1000, (rows, 1000), compressors=[ZstdCodec()])
    assert plan(fields, Resources(1, 1, 16 * GIB)).warnings[0].startswith("The matrix and the rhs carry no checksums")


def test_columns_of_chunks_that_are_decoded_again_and_again_are_refused(declared):
    said = refusal(declared(10**7, 10_000, (10**6, 10), compressors=[ZstdCodec()]))
    assert re.match(r"Chunks of 1,000,000 rows × 10 columns would be decoded \d+ times in each pass", said)


def test_chunks_that_are_decoded_a_few_times_are_warned_of(declared):
    made = plan(declared(10**6, 100, (10**6, 100)), Resources(1, 1, 16 * GIB))
    assert re.search(r"each chunk is decoded [34] times in a pass\. Fewer rows per chunk would", made.warnings[0])


def test_one_huge_chunk_of_plain_numbers_is_no_obstacle(declared):
    made = plan(declared(10**8, 100, (10**8, 100), compressors=None), Resources(1, 1, 512 * MIB))
    assert made.spans > 1
    assert made.bytes == 2 * 10**8 * 100 * 8


def test_a_huge_chunk_of_the_right_hand_side_is_refused(declared):
    said = refusal(declared(10**9, 4, (10**6, 4), rhs_rows=10**9))
    assert "one chunk of the rhs or the weights alone takes 7.5 GiB and has to be decoded whole" in said


def test_arrays_without_checksums_are_refused_when_the_job_insists(declared):
    said = refusal(declared(1000, 4, (100, 4), compressors=None), require={"checksums": True})
    assert said.startswith("The job requires checksums, and the matrix and the rhs carry none. Write them again with a")


def test_a_refusal_comes_before_any_worker_is_started(declared, command, tmp_path):
    cluster = tmp_path / "small.yaml"
    cluster.write_text("kind: local\nprocesses: 1\nmemory: 256 MiB\n")
    fields = declared(1_000_000, 100, (100_000, 100)) | {"output": "out"}
    done = command("run", "job.yaml", "--cluster", str(cluster), job=fields)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"A worker would need .* and has 256 MiB: .*\n", done.stderr)


def test_the_cut_is_the_same_on_every_machine(declared):
    inputs = open_inputs(LeastSquares(**declared(10**7, 64, (4096, 64))), "test")
    layouts = [lay_out(inputs.shape, block=None, products=True, slab_bytes=None, span_seconds=2.0) for _ in range(2)]
    assert layouts[0] == layouts[1]
    assert layouts[0].spans[-1].stop == 10**7


@pytest.mark.parametrize("shape", [(1000, 5), (5, 1000)])
def test_a_chunk_that_is_larger_than_the_array_is_decoded_once(declared, shape):
    found = plan(declared(*shape, (20_000, 20_000), compressors="auto"))
    assert found.passes[0].bytes == 1000 * 5 * 8


def one(name, threads, memory):
    return {"name": name, "nthreads": threads, "memory_limit": memory}


def test_of_workers_that_differ_the_plan_takes_the_one_with_the_least_for_each_thread():
    wide, narrow, small = one("wide", 8, 4 * GIB), one("narrow", 1, 3 * GIB), one("small", 1, 2 * GIB)
    assert offered_by([narrow, small, wide]) == Resources(3, 8, 4 * GIB, "wide")
    assert offered_by([narrow, small]) == Resources(2, 1, 2 * GIB, "small")
    assert offered_by([small, small]) == Resources(2, 1, 2 * GIB)
    assert offered_by([one("free", 1, 0)]).memory_bytes == 2**40
    assert offered_by([]) == Resources(0, 1, 0)


def test_the_worker_that_is_too_small_is_named(declared):
    offered = offered_by([one("large", 1, 64 * GIB), one("small", 1, GIB // 4)])
    with pytest.raises(PlanRefused) as caught:
        make_plan(LeastSquares(**declared(10**7, 500, (20_000, 500))), offered)
    assert str(caught.value).startswith("The worker small, which has the least of 2 for each thread, would need ")
