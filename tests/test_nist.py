"""Certified digits on the linear sets of NIST's Statistical Reference Datasets.

The data are https://www.itl.nist.gov/div898/strd/, each set solved in exact rational arithmetic too (exact_*).
The gates are what Householder methods reach: least digits over the coefficients, by condition number (9e2 to 5e9).
"""

import json
from pathlib import Path

import numpy as np
import pytest
from zarr.codecs import Crc32cCodec

from pipelines import LeastSquares, run

SETS = json.loads((Path(__file__).parent / "data" / "nist_strd_linear.json").read_text())
GATES = {
    "Norris": 11, "NoInt1": 14, "NoInt2": 14, "Longley": 10, "Wampler1": 8.5, "Wampler2": 9.5, "Wampler3": 8.5,
    "Wampler4": 7,
}  # fmt: skip
RESIDUAL_GATE = 11
"""Digits of the residual standard deviation, where it is not zero."""


def data(name):
    """The design matrix, the observations and the exact coefficients."""
    of = SETS[name]
    x = np.array(of["x"])
    if of["basis"] == "const+6":
        A = np.column_stack([np.ones(len(x)), x])
    else:
        A = x[:, None] if of["basis"] == "x only" else np.vander(x, int(of["basis"][4:]) + 1, increasing=True)
    return A, np.array(of["y"]), np.array([float(value) for value in of["exact_beta"]])


def digits(found, certified):
    """Correct decimal digits of the worst entry."""
    relative = np.abs(found - certified) / np.abs(certified)
    return float(-np.log10(max(relative.max(), 1e-16)))


def check(name, result, copies=1):
    """The gate, the residual standard deviation, and that the certificate promises no more than was reached."""
    A, _, beta = data(name)
    (m, n), certificate = A.shape, result.certificate
    assert certificate.rank == n
    assert digits(result.x, beta) >= GATES[name]
    sd = float(result.residual_norm) / np.sqrt(copies * (m - n))
    certified = float(SETS[name]["rsd"])
    if certified:
        assert digits(np.array([sd]), np.array([certified])) >= RESIDUAL_GATE
    else:
        # An exact fit leaves what rounding leaves: a few u of the observations for each copy.
        assert sd <= 1e-14 * np.abs(data(name)[1]).max()
    true_error = np.linalg.norm(result.x - beta) / np.linalg.norm(beta)
    # What is certified is itself rounded to a double.
    assert true_error <= certificate.forward_error_bound + 2e-16
    assert true_error <= 10.0**-certificate.correct_digits


@pytest.mark.parametrize("name", SETS)
def test_the_coefficients_reach_their_certified_digits(name):
    A, y, _ = data(name)
    check(name, run(LeastSquares(matrix=A, rhs=y)))


@pytest.mark.parametrize("name", SETS)
def test_chunks_of_any_height_reach_them_too(name, save):
    A, y, _ = data(name)
    m, n = A.shape
    for rows in range(1, m + 1):
        matrix = save(f"A{rows}", A, (rows, n), overwrite=True)
        rhs = save(f"y{rows}", y, (max(1, m - rows),), overwrite=True)
        check(name, run(LeastSquares(matrix=matrix, rhs=rhs)))


@pytest.mark.parametrize("name", SETS)
def test_tasks_of_one_row_each_reach_them_too(name, save):
    A, y, _ = data(name)
    # Chunks with checksums are read whole, so a span is a chunk here.
    matrix = save("A", A, (1, A.shape[1]), compressors=[Crc32cCodec()])
    method = {"name": "tsqr", "span_seconds": 1e-9}
    result = run(LeastSquares(matrix=matrix, rhs=save("y", y, (3,)), method=method))
    assert result.summary["plan"]["spans"] == len(y)
    check(name, result)


@pytest.mark.parametrize("name", SETS)
def test_permuted_rows_reach_them_too(name):
    A, y, _ = data(name)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(y))
        check(name, run(LeastSquares(matrix=A[order], rhs=y[order])))


@pytest.mark.parametrize("name", SETS)
def test_rows_repeated_a_thousandfold_reach_them_too(name, save):
    A, y, _ = data(name)
    tiled, right = np.tile(A, (1000, 1)), np.tile(y, 1000)
    check(name, run(LeastSquares(matrix=tiled, rhs=right)), copies=1000)
    stored = run(LeastSquares(matrix=save("A", tiled, (777, A.shape[1])), rhs=save("y", right, (5000,))))
    check(name, stored, copies=1000)


@pytest.mark.parametrize("name", SETS)
def test_a_weight_of_a_thousand_is_a_thousand_rows(name):
    A, y, _ = data(name)
    result = run(LeastSquares(matrix=A, rhs=y, weights=np.full(len(y), 1000.0)))
    check(name, result, copies=1000)


def test_normal_equations_would_not_pass():
    """Known to be poor: they square the condition number, and Longley keeps 7 digits of 10."""
    A, y, beta = data("Longley")
    assert digits(np.linalg.solve(A.T @ A, A.T @ y), beta) < GATES["Longley"] - 1
