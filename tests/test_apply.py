"""Operators: a pseudoinverse and a Q that are never formed, applied to what is stored."""

import json
import shutil

import numpy as np
import pytest
import zarr
from scipy.sparse.linalg import LinearOperator, lsqr
from zarr.codecs import Crc32cCodec

from pipelines import QR, SVD, Apply, Pseudoinverse, make_plan, open_result, operator_of, run
from pipelines.errors import BadData, JobFileError, PlanRefused
from pipelines.load import load_job
from pipelines.plan import Resources
from workers.clusters import Local, open_cluster

SHAPES = {"tall": (300, 12), "wide": (12, 300), "square": (20, 20)}
OF_M = ("pinv", "project_range", "project_left_null")
OF_N = ("pinv_adjoint", "project_row_space", "project_null")


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))


def matrix_of(rng, shape, what, dtype):
    m, n = SHAPES[shape]

    def drawn(*size):
        G = rng.standard_normal(size).astype(dtype)
        return G + 1j * rng.standard_normal(size) if dtype is complex else G

    if what == "deficient":
        return drawn(m, 5) @ drawn(5, n)
    if what == "steep":
        k = min(m, n)
        return np.linalg.qr(drawn(m, k))[0] * np.geomspace(1, 1e-10, k) @ np.linalg.qr(drawn(n, k))[0].conj().T
    return drawn(m, n)


def by_numpy(A, X, B):
    """Each product, with a pseudoinverse that is formed."""
    AX, XA = A @ X, X @ A
    if len(B) == A.shape[0]:
        yield from (("pinv", X @ B), ("project_range", AX @ B), ("project_left_null", B - AX @ B))
    if len(B) == A.shape[1]:
        yield from (("pinv_adjoint", X.conj().T @ B), ("project_row_space", XA @ B), ("project_null", B - XA @ B))
    yield "leverage", AX.diagonal().real


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("what", ["full", "deficient"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_product_is_that_of_the_inverse_that_is_written(rng, shape, what, ridge, dtype):
    A = matrix_of(rng, shape, what, dtype)
    held = run(Pseudoinverse(matrix=A, form="operator", ridge=ridge))
    X = run(Pseudoinverse(matrix=A, form="explicit", ridge=ridge))["pinv"]
    for names, length in ((OF_M, len(A)), (OF_N, A.shape[1])):
        for width in ((), (3,)):
            B = rng.standard_normal((length, *width))
            found = run(Apply(operator=held, matrix=A, rhs=B, compute=(*names, "leverage")))
            for name, expected in by_numpy(A, X, B):
                if name in (*names, "leverage"):
                    assert found[name].shape == expected.shape
                    np.testing.assert_allclose(found[name], expected, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_operator_meets_the_penrose_conditions_as_the_written_inverse_does(rng, shape):
    A = matrix_of(rng, shape, "steep", float)
    held = run(Pseudoinverse(matrix=A, form="operator")).certificate
    written = run(Pseudoinverse(matrix=A, form="explicit")).certificate
    for condition, residual in written.penrose.items():
        assert held.penrose[condition] <= 10 * residual + 1e-14
    assert "what the operator makes of your matrix" in held.statement
    assert (held.rank, held.condition_number) == (written.rank, written.condition_number)


@pytest.mark.parametrize("dtype", [float, complex])
def test_an_implicit_q_is_the_one_that_is_written(rng, dtype):
    A = matrix_of(rng, "tall", "steep", dtype)
    kept, written = (run(QR(matrix=A, form=form)) for form in ("implicit", "explicit"))
    np.testing.assert_allclose(kept["R"], written["R"], atol=1e-14)
    assert kept.certificate.orthogonality < 1e-13
    B, C = rng.standard_normal((300, 4)), rng.standard_normal((12, 4))
    Q = written["Q"]
    np.testing.assert_allclose(run(Apply(operator=kept, matrix=A, rhs=C, compute="Q"))["Q"], Q @ C, atol=1e-12)
    found = run(Apply(operator=kept, matrix=A, rhs=B, compute="Q_adjoint"))["Q_adjoint"]
    np.testing.assert_allclose(found, Q.conj().T @ B, atol=1e-12)


def test_projections_of_a_steep_matrix_keep_all_their_digits(rng):
    """With A R⁻¹ alone, as Q, the projection would be no projection: that Q is orthonormal to 1e-6 only."""
    A = matrix_of(rng, "tall", "steep", float)
    held = run(Pseudoinverse(matrix=A, form="operator"))
    B = rng.standard_normal((300, 3))
    once = run(Apply(operator=held, matrix=A, rhs=B, compute="project_range"))["project_range"]
    twice = run(Apply(operator=held, matrix=A, rhs=once, compute="project_range"))["project_range"]
    assert np.abs(once - twice).max() < 1e-13
    Q = np.linalg.qr(A)[0]
    assert np.abs(once - Q @ (Q.T @ B)).max() < 1e-5  # the range itself is known to κ u only


# From storage to storage


@pytest.fixture
def stored(save, rng, tmp_path):
    """A stored matrix with an operator and right-hand sides beside it."""
    A, B, C = rng.standard_normal((1000, 12)), rng.standard_normal((1000, 3)), rng.standard_normal((12, 3))
    whole = {"compressors": [Crc32cCodec()]}
    matrix = save("A", A, (100, 12), **whole)
    run(Pseudoinverse(matrix=matrix, form="operator", output=f"{tmp_path}/operator"))
    return A, B, C, matrix, f"{tmp_path}/operator", save("B", B, (70, 3), **whole), save("C", C, **whole)


def test_an_operator_is_small_and_its_products_are_written_chunk_by_chunk(stored, tmp_path, rng):
    A, B, C, _, operator, b, c = stored
    assert sorted(open_result(operator).names) == ["K", "R1", "R2", "singular_values"]
    X = np.linalg.pinv(A)
    run(Apply(operator=operator, rhs=b, compute=(*OF_M, "leverage"), output=f"{tmp_path}/down"))
    run(Apply(operator=operator, rhs=c, compute=OF_N, output=f"{tmp_path}/up"))
    down, up = open_result(f"{tmp_path}/down"), open_result(f"{tmp_path}/up")
    for found, B_ in ((down, B), (up, C)):
        for name, expected in by_numpy(A, X, B_):
            if name in found.names:
                np.testing.assert_allclose(found[name], expected, atol=1e-10)
    assert zarr.open_array(f"{tmp_path}/down/project_range", mode="r").chunks == (100, 3)
    assert zarr.open_array(f"{tmp_path}/down/leverage", mode="r").chunks == (100,)
    assert zarr.open_array(f"{tmp_path}/up/pinv_adjoint", mode="r").chunks == (100, 3)
    assert "Products with the operator, not measured themselves" in down.certificate.statement


@pytest.mark.parametrize(
    ("compute", "reads"),
    [
        (("pinv",), ["gather"]),
        (("pinv", "project_range", "project_left_null", "leverage"), ["gather", "write"]),
        (("pinv_adjoint",), ["write"]),
        (("pinv_adjoint", "project_row_space", "project_null"), ["write"]),
        (("project_row_space",), []),
        (("leverage",), ["write"]),
    ],
)
def test_as_few_reads_as_can_be(stored, compute, reads):
    _, _, _, _, operator, b, c = stored
    rhs = None if compute == ("leverage",) else c if compute[0] in OF_N else b
    job = Apply(operator=operator, rhs=rhs, compute=compute)
    assert [one.name for one in make_plan(job).passes] == reads
    assert list(run(job).summary["timings"]) == [*reads, "total"]


def test_any_number_of_threads_and_workers_gives_the_same_bits(save, rng, tmp_path):
    matrix = save("A", matrix_of(rng, "tall", "full", float), (10, 12), compressors=[Crc32cCodec()])
    b = save("B", rng.standard_normal((300, 3)), (10, 3), compressors=[Crc32cCodec()])
    run(Pseudoinverse(matrix=matrix, form="operator", output=f"{tmp_path}/operator",
                      method={"name": "tsqr", "span_seconds": 1e-9}))  # fmt: skip
    job = Apply(operator=f"{tmp_path}/operator", rhs=b, compute=("pinv", "project_range"))
    found = [run(job, resources=Resources(1, threads, 2**32)) for threads in (1, 8)]
    assert found[0].summary["plan"]["spans"] == 30
    with open_cluster(Local(processes=2, threads=1, memory="400 MiB")) as client:
        found.append(run(job, client))
    bits = [[one[name].tobytes() for name in job.compute] for one in found]
    assert bits[0] == bits[1] == bits[2]


def test_as_a_linear_operator_of_scipy(stored, rng):
    A, B, C, _, operator, _, _ = stored
    X = operator_of(operator)
    assert isinstance(X, LinearOperator)
    assert X.shape == (12, 1000)
    np.testing.assert_allclose(X @ B, np.linalg.pinv(A) @ B, atol=1e-12)
    np.testing.assert_allclose(X @ B[:, 0], np.linalg.pinv(A) @ B[:, 0], atol=1e-12)
    np.testing.assert_allclose(X.H @ C, np.linalg.pinv(A).T @ C, atol=1e-12)
    # SciPy's own solvers take it: the least-squares solution of A⁺ y = c is y = A c.
    np.testing.assert_allclose(lsqr(X, C[:, 0], atol=1e-14, btol=1e-14)[0], A @ C[:, 0], atol=1e-8)
    in_memory = run(QR(matrix=A, form="implicit"))
    Q = operator_of(in_memory, matrix=A)
    assert Q.shape == (1000, 12)
    np.testing.assert_allclose(Q.H @ (Q @ C), C, atol=1e-12)


def test_rows_with_nan_count_as_zeros_again(save, rng, tmp_path):
    A = rng.standard_normal((300, 6))
    A[17, 2] = np.nan
    matrix = save("A", A, (50, 6))
    run(Pseudoinverse(matrix=matrix, form="operator", nan="omit_rows", output=f"{tmp_path}/operator"))
    B = rng.standard_normal((300, 2))
    found = run(Apply(operator=f"{tmp_path}/operator", rhs=B, compute=("pinv", "leverage")))
    A[17] = 0
    np.testing.assert_allclose(found["pinv"], np.linalg.pinv(A) @ B, atol=1e-12)
    assert found["leverage"][17] == 0
    B[17] = np.nan  # beside a row of A that counts as zeros, it is not looked at
    again = run(Apply(operator=f"{tmp_path}/operator", rhs=B, compute=("pinv", "project_left_null")))
    assert np.array_equal(again["pinv"], found["pinv"])
    assert not again["project_left_null"][17].any()
    B[18] = np.nan
    with pytest.raises(BadData, match=r"2 entries of the rhs are NaN or infinite; the first is at row 18"):
        run(Apply(operator=f"{tmp_path}/operator", rhs=B, compute="pinv"))


# The planner's choice


def test_what_is_too_large_to_be_written_is_kept_as_an_operator(stored, tmp_path):
    matrix = stored[3]
    job = Pseudoinverse(matrix=matrix, explicit_at_most="50 kB", output=f"{tmp_path}/small")
    plan = make_plan(job)
    assert [one.name for one in plan.passes] == ["factor", "orthogonalise", "probe", "verify"]
    assert "A⁺ would be 93.8 KiB, kept as an operator of 3.4 KiB" in plan.reason
    run(job)
    assert open_result(f"{tmp_path}/small").summary["form"] == "operator"
    assert run(Apply(operator=f"{tmp_path}/small", compute="leverage"))["leverage"].sum() == pytest.approx(12)
    written = run(Pseudoinverse(matrix=matrix, output=f"{tmp_path}/large"))
    assert written.summary["form"] == "explicit"


# What goes wrong


def test_a_matrix_that_has_moved_or_changed_is_noticed(stored, tmp_path):
    A, _, _, matrix, operator, b, _ = stored
    job = Apply(operator=operator, rhs=b, compute="pinv")
    array = zarr.open_array(matrix, mode="r+")
    array[0] = A[1]
    with pytest.raises(BadData, match=r"is not what the operator .*/operator was made from: its chunks were written"):
        run(job)
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    with pytest.raises(BadData, match=r"A"):
        run(job)
    with pytest.raises(BadData, match=r"is not what the operator"):
        run(Apply(operator=operator, rhs=b, compute="pinv", matrix=f"{tmp_path}/elsewhere"))
    with pytest.raises(BadData, match=r"The matrix is 1,000 × 3 now, and was 1,000 × 12 when the operator"):
        run(Apply(operator=operator, rhs=b, compute="pinv", matrix=b))


def test_an_output_never_replaces_the_matrix_of_an_operator(save, rng, tmp_path):
    """Its path stands in the operator and not in the job file, or behind a link."""
    run(SVD(matrix=rng.standard_normal((300, 6)), vectors="both", output=f"{tmp_path}/svd"))
    run(Pseudoinverse(matrix=f"{tmp_path}/svd/U", form="operator", output=f"{tmp_path}/operator"))
    (tmp_path / "link").symlink_to(tmp_path / "svd")
    for output in ("svd", "link", "svd/U/inside"):
        with pytest.raises(PlanRefused, match=r"an output outside the input; .*the matrix of the operator"):
            run(
                Apply(
                    operator=f"{tmp_path}/operator", compute="leverage", output=f"{tmp_path}/{output}", overwrite=True
                )
            )
    with pytest.raises(ValueError, match="an output outside the input"):
        SVD(matrix=f"{tmp_path}/link/U", output=f"{tmp_path}/svd", overwrite=True)
    assert open_result(f"{tmp_path}/svd")["U"].shape == (300, 6)


@pytest.mark.parametrize(
    ("then", "now"), [([1, 0, 2], [0, 1, 2]), ([1, 0, 2], None), (None, [2, 1, 0]), ([0, 1, 2], [3, 4, 5])]
)
def test_other_columns_of_the_same_array_are_not_the_same_matrix(save, rng, tmp_path, then, now):
    url = save("A", rng.standard_normal((300, 6 if then else 3)), (100, 6 if then else 3))
    run(Pseudoinverse(matrix={"url": url, "columns": then}, form="operator", output=f"{tmp_path}/operator"))
    operator = f"{tmp_path}/operator"
    with pytest.raises(BadData, match=r"(Give the same `columns`, in the same order|The matrix is 300 × 6 now)"):
        run(Apply(operator=operator, compute="leverage", matrix={"url": url, "columns": now}))
    same = run(Apply(operator=operator, compute="leverage", matrix={"url": url, "columns": then}))["leverage"]
    assert same.sum() == pytest.approx(3)


def test_nan_in_a_is_an_error_where_the_job_says_so(save, rng, tmp_path):
    A = rng.standard_normal((300, 6))
    A[17, 2] = np.nan
    run(Pseudoinverse(matrix=save("A", A, (50, 6)), form="operator", nan="omit_rows", output=f"{tmp_path}/operator"))
    for compute, rhs in (("leverage", None), ("pinv_adjoint", np.ones(6)), ("pinv", np.ones(300))):
        with pytest.raises(BadData, match=r"1 entry of the matrix .* the first is at row 17, column 2"):
            run(Apply(operator=f"{tmp_path}/operator", compute=compute, rhs=rhs, nan="error"))


def test_what_needs_no_read_says_that_nobody_looked(stored):
    _, _, C, _, operator, _, _ = stored
    found = run(Apply(operator=operator, rhs=C, compute="project_null"))
    assert found.certificate.statement.startswith("A was not read, so nobody has seen whether it is still what it was.")


def test_a_matrix_that_is_gone_is_named_with_its_operator(stored, tmp_path):
    _, _, _, _, operator, b, _ = stored
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    with pytest.raises(
        BadData, match=r"The operator .*/operator was made from the matrix .*/A, and nothing is there, seen"
    ):
        run(Apply(operator=operator, rhs=b, compute="pinv"))


def test_a_matrix_that_was_moved_with_its_times_is_found_there(stored, tmp_path):
    A, B, _, _, operator, b, _ = stored
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    found = run(Apply(operator=operator, rhs=b, compute="pinv", matrix=f"{tmp_path}/elsewhere"))
    np.testing.assert_allclose(found["pinv"], np.linalg.pinv(A) @ B, atol=1e-12)


def test_a_b_of_the_wrong_shape_is_refused_before_reading(stored):
    _, _, _, _, operator, b, c = stored
    with pytest.raises(
        BadData, match=r"The rhs has 12 rows, and `compute: pinv` takes 1,000, one for each of the rows"
    ):
        run(Apply(operator=operator, rhs=c, compute="pinv"))
    with pytest.raises(BadData, match=r"has 1,000 rows, and `compute: pinv_adjoint` takes 12, one for each of the col"):
        run(Apply(operator=operator, rhs=b, compute="pinv_adjoint"))


def test_a_q_that_stops_at_the_rank_takes_as_many_rows(rng):
    A = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8))
    kept = run(QR(matrix=A, form="implicit", pivoting=True))
    with pytest.raises(BadData, match=r"`compute: Q` takes 3, one for each of the columns of Q \(50 × 3\)"):
        run(Apply(operator=kept, matrix=A, rhs=np.ones(8), compute="Q"))
    Q = operator_of(kept, matrix=A)
    assert Q.shape == (50, 3)
    np.testing.assert_allclose(Q.H @ (Q @ np.eye(3)), np.eye(3), atol=1e-13)


def test_what_is_no_operator_says_what_it_is(stored, tmp_path, rng):
    A, _, _, matrix, operator, b, _ = stored
    run(Pseudoinverse(matrix=matrix, form="explicit", output=f"{tmp_path}/written"))
    run(QR(matrix=matrix, output=f"{tmp_path}/r"))
    for path, letter in (
        (
            "written",
            r"holds pinv \(form: explicit\) and no operator. Run its job again with `form: operator`, or multi",
        ),
        ("r", r"holds R alone \(form: r\) and no operator. Run its job again with `form: implicit`."),
        ("nothing", r"There is no result at"),
    ):
        with pytest.raises(BadData, match=letter):
            run(Apply(operator=f"{tmp_path}/{path}", rhs=b, compute="pinv"))
    with pytest.raises(BadData, match=r"`compute: Q` is asked for, and the operator .* can do pinv, pinv_adjoint"):
        run(Apply(operator=operator, rhs=b, compute="Q"))
    in_memory = run(Pseudoinverse(matrix=A, form="operator"))
    with pytest.raises(PlanRefused, match=r"factored from an array in memory .*numpy.ndarray of shape \[1000, 12\]"):
        run(Apply(operator=in_memory, rhs=b, compute="pinv"))


def _without(path, key):
    file = path / "zarr.json"
    text = json.loads(file.read_text())
    del text["attributes"]["tallgrass"][key]
    file.write_text(json.dumps(text))


def _truncated(path, array):
    chunk = next(file for file in (path / array / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])


def _rewritten(path, array):
    zarr.create_array(path / array, shape=(3, 3), dtype=float, overwrite=True)[...] = np.ones((3, 3))


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda path, name=name: shutil.rmtree(path / name) for name in ("K", "R1", "R2")),
        *(lambda path, name=name: _truncated(path, name) for name in ("K", "R1", "R2")),
        *(lambda path, key=key: _without(path, key) for key in ("plan", "job", "input")),
        lambda path: _rewritten(path, "K"),
        lambda path: zarr.open_array(path / "K", mode="r+").__setitem__((0, 0), np.nan),
    ],
)
def test_a_damaged_operator_is_a_letter(stored, tmp_path, damage):
    _, _, _, _, operator, b, _ = stored
    damage(tmp_path / "operator")
    with pytest.raises(
        BadData, match=r"The result .*/operator is damaged or not complete \(.*\). Run the job that made"
    ):
        run(Apply(operator=operator, rhs=b, compute="pinv"))


def test_nan_in_b_is_bad_data(stored, rng):
    _, B, C, _, operator, _, _ = stored
    B[5, 1] = C[3, 0] = np.nan
    with pytest.raises(BadData, match=r"1 entries of the rhs are NaN or infinite; the first is at row 5, column 1"):
        run(Apply(operator=operator, rhs=B, compute="pinv"))
    with pytest.raises(BadData, match=r"entries of the rhs are NaN or infinite; the first is at row 3, column 0"):
        run(Apply(operator=operator, rhs=C, compute="pinv_adjoint"))


@pytest.mark.parametrize(
    ("fields", "letter"),
    [
        ("compute: [pinv, pinv_adjoint]\nrhs: B", r"pinv and pinv_adjoint in two jobs: one takes m rows of B"),
        ("compute: [pinv, pinv]\nrhs: B", r"each of them once"),
        ("compute: pinv", r"rhs: is missing; needed B, which pinv is applied to"),
        ("compute: leverage\nrhs: B", r"no rhs: leverage takes none"),
        ("compute: inverse\nrhs: B", r"compute"),
        ("compute: []\nrhs: B", r"compute"),
    ],
)
def test_a_job_file_that_contradicts_itself(tmp_path, fields, letter):
    path = tmp_path / "job.yaml"
    path.write_text(f"kind: apply\noperator: operator\noutput: result\n{fields}\n")
    with pytest.raises(JobFileError, match=letter):
        load_job(path)


def test_the_command(command, stored, tmp_path):
    A, B, _, _, operator, b, _ = stored
    job = {"kind": "apply", "operator": operator, "rhs": b, "compute": ["pinv", "leverage"], "output": "result"}
    done = command("run", "job.yaml", job=job)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_result(f"{tmp_path}/result")["pinv"], np.linalg.pinv(A) @ B, atol=1e-12)
    shown = command("show", "result")
    assert 'open_result("result")["pinv"]' in shown.stdout
    assert "apply" in command("plan", "job.yaml").stdout
    assert command("check", "job.yaml").returncode == 0
