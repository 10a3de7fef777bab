"""Each array of each kind of result held against the input: untouched it holds, and spoilt it is found."""

import numpy as np
import pytest
import zarr

from pipelines import PCA, Apply, PCATransform, Pseudoinverse, open_result, run, verify
from pipelines.errors import BadData
from pipelines.load import job_of
from tests.conftest import stored

M, N = 240, 6
OPERATOR = {"kind": "pseudoinverse", "form": "operator"}
IMPLICIT = {"kind": "qr", "form": "implicit"}
KRYLOV = {"values": 3, "method": {"name": "block_krylov", "steps": 1, "oversampling": 2}, "matrix": "noise"}
SKETCH = {"method": {"name": "sketch", "oversampling": 2}, "matrix": "noise"}
KINDS = {
    "R alone": {"kind": "qr"},
    "R alone, pivoted": {"kind": "qr", "pivoting": True, "matrix": "deficient"},
    "implicit Q": IMPLICIT,
    "implicit Q, pivoted": IMPLICIT | {"pivoting": True, "matrix": "deficient"},
    "values": {"kind": "svd"},
    "values, of a sketch": {"kind": "svd", "values": 3} | SKETCH,
    "right vectors": {"kind": "svd", "vectors": "right", "values": 4},
    "right vectors, found by chance": {"kind": "svd", "vectors": "right"} | KRYLOV,
    "right vectors of a wide matrix": {"kind": "svd", "vectors": "right", "matrix": "wide"},
    "right vectors of a wide one, by chance": {"kind": "svd", "vectors": "right"} | KRYLOV | {"matrix": "wide_noise"},
    "all vectors, found by chance": {"kind": "svd", "vectors": "both"} | KRYLOV,
    "low rank": {"kind": "low_rank", "rank": 3},
    "low rank, of a sketch": {"kind": "low_rank", "rank": 3} | SKETCH,
    "operator": OPERATOR,
    "operator, deficient": OPERATOR | {"matrix": "deficient"},
    "operator with a ridge, wide": OPERATOR | {"matrix": "wide", "ridge": 0.1},
    "x with its R": {"kind": "least_squares", "rhs": "b", "arrays": ["R", "singular_values"]},
    "a ridge solution of a wide matrix": {"kind": "least_squares", "matrix": "wide", "rhs": "few", "ridge": 0.1},
    "components": {"kind": "pca", "scale": True},
    "scores": {"kind": "pca", "scores": True, "whiten": True, "n_components": 3, "nan": "omit_rows", "matrix": "gaps"},
    "components of a wide matrix": {"kind": "pca", "matrix": "wide", "scores": True, "scale": True},
    "scores of other rows": {"kind": "pca_transform", "pca": {"kind": "pca", "whiten": True}},
    "rows from scores": {"kind": "pca_transform", "pca": {"kind": "pca", "scale": True}, "inverse": True},
    "products": {"kind": "apply", "operator": OPERATOR | {"matrix": "gaps", "nan": "omit_rows"}, "rhs": "b",
                 "compute": ["pinv", "project_left_null", "leverage"]},
    "products with n rows": {"kind": "apply", "operator": OPERATOR | {"matrix": "deficient"}, "rhs": "few",
                             "compute": ["pinv_adjoint", "project_row_space", "project_null"]},
    "products with Q": {"kind": "apply", "operator": IMPLICIT, "rhs": "few", "compute": ["Q"]},
    "products with its adjoint": {"kind": "apply", "operator": IMPLICIT, "rhs": "b", "compute": ["Q_adjoint"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Matrices of every shape that matters."""
    folder, random = tmp_path_factory.mktemp("kinds"), np.random.default_rng(5)
    noise = random.standard_normal((M, 40))
    A = random.standard_normal((M, N)) @ np.diag(np.logspace(0, -3, N)) + random.standard_normal(N)
    gaps, deficient = A.copy(), A.copy()
    gaps[[3, 130], 2] = np.nan
    deficient[:, 4] = deficient[:, 1] - deficient[:, 3]
    arrays = {"A": A, "noise": noise, "gaps": gaps, "deficient": deficient, "wide": np.ascontiguousarray(A.T),
              "wide_noise": np.ascontiguousarray(noise.T), "b": random.standard_normal((M, 2)),
              "few": random.standard_normal((N, 2))}  # fmt: skip
    for name, array in arrays.items():
        stored(folder / name, array, tuple(min(80, length) for length in array.shape))
    return folder


def made(data, output, fields):
    """A result, and before it the one that it takes."""
    fields = {"matrix": "A"} | fields
    for name in ("operator", "pca"):
        if name in fields:
            made(data, f"{output}-{name}", fields[name])
            fields[name] = f"{output}-{name}"
            if name == "operator":
                del fields["matrix"]
    paths = {name: str(data / fields[name]) for name in ("matrix", "rhs", "weights") if name in fields}
    return run(job_of(fields | paths | {"output": str(output)}))


@pytest.mark.parametrize("name", KINDS)
def test_what_nobody_touched_holds_and_whichever_array_is_spoilt_is_found(data, tmp_path, name):
    made(data, tmp_path / "out", KINDS[name])
    url = f"{tmp_path}/out"
    found = verify(url)
    assert found.holds
    assert found.changed == ()
    assert found.rank[0] == found.rank[1]
    assert all(number.holds for number in found.numbers)
    assert all(number.now <= number.most for number in found.numbers if number.stored is None)
    for turn, array in enumerate(open_result(url).names):
        held = zarr.open_array(f"{url}/{array}", mode="r+")
        before = held[...]
        spoilt = before.copy()
        largest = np.unravel_index(np.argmax(np.abs(before)), before.shape)
        spoilt[largest] = np.nan if turn == 1 and before.dtype.kind == "f" else before[largest] * (1 + 1e-4)
        spoilt[largest] += before.dtype.kind == "i"
        held[...] = spoilt
        assert verify(url).holds is False, array
        held[...] = before


def matrix(kind):
    """Matrices at which rounding shows."""
    random = np.random.default_rng(len(kind))
    parts = [random.standard_normal((150, N)) for _ in range(2)]
    U, _, Vh = np.linalg.svd(parts[0] + (1j * parts[1] if kind == "complex" else 0), full_matrices=False)
    s = np.geomspace(1, 1e-12 if kind == "of condition 1e12" else 1e-2, N)
    s[4:] *= kind != "deficient"
    A = (U * s) @ Vh
    if kind == "in other units":
        A = A * np.array([1e60, 1e55, 1e60, 1e58, 1e50, 1e60])
    return np.ascontiguousarray(A.T) if kind == "wide" else A


@pytest.mark.parametrize("kind", [
    "of condition 1e12", "deficient", "complex", "in other units", "wide", "in few digits",
])  # fmt: skip
def test_a_matrix_at_which_rounding_shows_makes_no_false_alarm(tmp_path, kind):
    A = matrix(kind)
    stored(tmp_path / "A", A, (50, 6) if kind != "wide" else (6, 50))
    stored(tmp_path / "b", np.random.default_rng(1).standard_normal((len(A), 2)))
    digits = {"dtype": "float32"} if kind == "in few digits" else {}
    for name in (
        "R alone", "implicit Q", "values", "right vectors", "operator", "x with its R", "components",
        "a ridge solution of a wide matrix",
    ):  # fmt: skip
        fields = KINDS[name] | {"matrix": "A"} | ({"rhs": "b"} if "rhs" in KINDS[name] else {}) | digits
        if (fields["kind"] == "qr") and (kind == "wide" or (kind == "deficient" and "form" in fields)):
            continue
        made(tmp_path, tmp_path / name, fields)
        assert verify(f"{tmp_path}/{name}").holds, name
    operator = IMPLICIT if kind not in ("wide", "deficient") else OPERATOR
    compute = ["Q_adjoint"] if operator is IMPLICIT else ["pinv", "project_range"]
    made(
        tmp_path,
        tmp_path / "products",
        {"kind": "apply", "operator": operator, "rhs": "b", "compute": compute} | digits,
    )
    assert verify(f"{tmp_path}/products").holds


@pytest.mark.parametrize("condition", [1e8, 1e12])
def test_r_and_right_vectors_are_found_to_be_spoilt_at_any_condition_number(tmp_path, condition):
    random = np.random.default_rng(3)
    U, _, Vh = np.linalg.svd(random.standard_normal((200, N)), full_matrices=False)
    stored(tmp_path / "A", (U * np.geomspace(1, 1 / condition, N)) @ Vh, (50, N))
    for fields, array in (
        ({"kind": "qr"}, "R"),
        ({"kind": "svd", "vectors": "right"}, "Vt"),
        ({"kind": "pca"}, "components"),
    ):
        made(tmp_path, tmp_path / array, fields)
        held = zarr.open_array(f"{tmp_path}/{array}/{array}", mode="r+")
        before = held[...]
        held[0] = before[0] * (1 + 1e-10)
        assert verify(f"{tmp_path}/{array}").holds is False
        held[...] = before + np.triu(1e-10 * random.standard_normal(before.shape))
        assert verify(f"{tmp_path}/{array}").holds is False


def test_an_r_whose_rows_were_turned_is_one_of_the_matrix_and_not_the_one_that_was_promised(data, tmp_path):
    made(data, tmp_path / "out", {"kind": "qr"})
    held = zarr.open_array(f"{tmp_path}/out/R", mode="r+")
    before = held[...]
    held[2] = -before[2]  # diag(1, 1, -1, …) R has the same RᵀR
    assert verify(f"{tmp_path}/out").holds is False
    held[...] = np.linalg.qr(np.random.default_rng(1).standard_normal((N, N)))[0] @ before
    assert verify(f"{tmp_path}/out").holds is False


def test_components_with_the_other_sign_are_not_those_that_were_promised(data, tmp_path):
    for name, array in (("components", "components"), ("components of a wide matrix", "components")):
        made(data, tmp_path / name, KINDS[name])
        held = zarr.open_array(f"{tmp_path}/{name}/{array}", mode="r+")
        held[...] = -held[...]
        assert verify(f"{tmp_path}/{name}").holds is False


def test_a_ridge_solution_of_a_wide_matrix_that_is_longer_than_it_has_to_be_does_not_hold(tmp_path):
    random = np.random.default_rng(2)
    A = random.standard_normal((5, 80))
    stored(tmp_path / "A", A, (5, 20))
    stored(tmp_path / "b", random.standard_normal(5))
    for ridge in (1e-12, 1e3):
        made(tmp_path, tmp_path / "out", KINDS["a ridge solution of a wide matrix"] | {
            "matrix": "A", "rhs": "b", "ridge": ridge, "overwrite": True})  # fmt: skip
        assert verify(f"{tmp_path}/out").holds
        held = zarr.open_array(f"{tmp_path}/out/x", mode="r+")
        before, null = held[...], np.linalg.svd(A)[2][-1]
        held[...] = before + 1e-8 * np.linalg.norm(before) * null  # A x stays as it is
        assert verify(f"{tmp_path}/out").holds is False
        held[...] = before * (1 + 1e-8)
        assert verify(f"{tmp_path}/out").holds is False


def test_a_right_hand_side_that_was_written_since_is_told_where_no_read_of_the_matrix_sees_it(data, tmp_path):
    random = np.random.default_rng(4)
    b, w = random.standard_normal(N), random.uniform(1, 2, N)
    stored(tmp_path / "b", b)
    stored(tmp_path / "w", w)
    fields = {"matrix": str(data / "wide"), "rhs": f"{tmp_path}/b", "output": f"{tmp_path}/out"}
    run(job_of({"kind": "least_squares", "weights": f"{tmp_path}/w"} | fields))
    zarr.open_array(f"{tmp_path}/b", mode="r+")[...] = b
    found = verify(f"{tmp_path}/out")
    assert (found.holds, found.changed) == (True, ("rhs",))
    zarr.open_array(f"{tmp_path}/w", mode="r+")[...] = w[::-1]
    found = verify(f"{tmp_path}/out")
    assert found.changed == ("rhs", "weights")


def test_products_with_an_operator_tell_of_a_matrix_and_of_factors_that_are_others_now(data, tmp_path):
    A = np.random.default_rng(6).standard_normal((90, 3))
    stored(tmp_path / "A", A, (30, 3))
    fields = {"kind": "apply", "operator": OPERATOR, "compute": ["leverage"]}
    made(tmp_path, tmp_path / "out", fields)
    zarr.open_array(f"{tmp_path}/A", mode="r+")[...] = A
    found = verify(f"{tmp_path}/out")
    assert (found.holds, found.changed) == (True, ("matrix",))
    zarr.open_array(f"{tmp_path}/A", mode="r+")[:30] = 2 * A[:30]
    assert verify(f"{tmp_path}/out").holds is False


def test_a_part_of_a_result_that_is_gone_is_told(data, tmp_path):
    made(data, tmp_path / "out", {"kind": "qr"})
    next(path for path in (tmp_path / "out" / "R" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(BadData, match=r"The result .*out is damaged or not complete \(ChunkNotFoundError"):
        verify(f"{tmp_path}/out")


def test_what_was_made_with_a_result_in_memory_is_measured_with_a_job_that_holds_it(data, tmp_path):
    held = run(Pseudoinverse(form="operator", matrix=str(data / "A")))
    job = Apply(operator=held, compute=("leverage",), output=f"{tmp_path}/out")
    run(job)
    with pytest.raises(BadData, match=r"The operator of this result lived in the memory of a Python process"):
        verify(f"{tmp_path}/out")
    assert verify(f"{tmp_path}/out", job=job).holds
    pca = run(PCA(matrix=str(data / "A")))
    job = PCATransform(pca=pca, matrix=str(data / "A"), output=f"{tmp_path}/scores")
    assert verify(run(job), job=job).holds


def test_an_operator_of_an_ill_conditioned_matrix_holds_in_the_slabs_that_it_was_made_in(tmp_path):
    U, _, Vh = np.linalg.svd(np.random.default_rng(8).standard_normal((9000, 12)), full_matrices=False)
    stored(tmp_path / "A", (U * np.geomspace(1, 1e-12, 12)) @ Vh, (3500, 12))
    stored(tmp_path / "b", np.ones((9000, 1)))
    for operator in (IMPLICIT, OPERATOR):
        what = "Q_adjoint" if operator is IMPLICIT else "project_left_null"
        made(tmp_path, tmp_path / what, {"kind": "apply", "operator": operator, "rhs": "b", "compute": [what]})
        assert verify(f"{tmp_path}/{what}-operator").holds
        found = verify(f"{tmp_path}/{what}")
        assert found.holds
        assert found.numbers[0].now == 0  # equal slabs give equal bits


def test_a_truncated_pseudoinverse_in_few_digits_holds_with_what_they_add_to_it(tmp_path):
    random = np.random.default_rng(9)
    stored(tmp_path / "A", random.standard_normal((900, 5)) @ random.standard_normal((5, 12)), (300, 12))
    made(tmp_path, tmp_path / "out", {"kind": "pseudoinverse", "form": "explicit", "dtype": "float32"})
    assert verify(f"{tmp_path}/out").holds
