"""The sweep and the merge against NumPy, and the way to LAPACK under them."""

import ctypes
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import lapack as f2py

from pipelines.kernels import pointers, sweep
from pipelines.kernels.lapack import Tpqrt
from pipelines.kernels.pointers import leading
from pipelines.kernels.sweep import Sweep, Triangle, merge
from tests.test_growth import grown

U = np.finfo(np.float64).eps / 2


def numbers(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else real


def swept(A, B, rows, block=None):
    """The triangle of [A B], absorbed `rows` rows at a time."""
    p, t = A.shape[1], B.shape[1]
    work, triangle = Sweep(p, t, A.dtype, rows, block), Triangle.empty(p, t, A.dtype)
    for start in range(0, A.shape[0], rows):
        S = work.buffer(min(rows, A.shape[0] - start))
        S[:, :p], S[:, p:] = A[start : start + rows], B[start : start + rows]
        work.absorb(triangle, S)
    return triangle


def check(triangle, A, B):
    """What a triangle promises: RᴴR = AᴴA, RᴴC = AᴴB and the squared distances of B's columns from the range of A.

    Householder QR is backward stable: its error grows with the number of slabs and columns, far below 1000 u here.
    """
    R = np.triu(triangle.R)
    size = max(np.linalg.norm(A), 1e-300)
    assert np.linalg.norm(R.conj().T @ R - A.conj().T @ A) <= 1000 * U * size**2
    assert np.linalg.norm(R.conj().T @ triangle.C - A.conj().T @ B) <= 1000 * U * size * np.linalg.norm(B)
    x = np.linalg.lstsq(A, B, rcond=None)[0] if A.size else np.zeros((A.shape[1], B.shape[1]))
    tail = (np.abs(B - A @ x) ** 2).sum(axis=0)
    assert np.abs(triangle.tail - tail).max(initial=0) <= 1000 * U * (np.abs(B) ** 2).sum(initial=0)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("t", [0, 1, 5])
@pytest.mark.parametrize("p", [1, 2, 7, 33])
@pytest.mark.parametrize("rows", [1, 3, 50, 64])
def test_a_sweep_leaves_the_triangle_of_all_rows(dtype, t, p, rows):
    rng = np.random.default_rng([p, t, rows])
    A, B = numbers(rng, (101, p), dtype), numbers(rng, (101, t), dtype)
    check(swept(A, B, rows), A, B)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_r_is_that_of_numpy_up_to_signs(dtype):
    A = numbers(np.random.default_rng(1), (300, 20), dtype)
    ours, theirs = np.triu(swept(A, A[:, :0], 32).R), np.linalg.qr(A, mode="r")
    assert np.abs(np.abs(ours) - np.abs(theirs)).max() < 1e-12 * np.abs(theirs).max()


@pytest.mark.parametrize("m", [0, 1, 4, 7])
def test_fewer_rows_than_columns_are_no_special_case(m):
    rng = np.random.default_rng(m)
    A, B = rng.standard_normal((m, 7)), rng.standard_normal((m, 2))
    check(swept(A, B, 3), A, B)


def test_without_pivot_columns_only_the_norms_of_the_right_hand_sides_are_kept():
    B = np.random.default_rng(2).standard_normal((90, 3))
    triangle = swept(B[:, :0], B, 32)
    assert triangle.R.shape == (0, 0)
    np.testing.assert_allclose(triangle.tail, (B**2).sum(axis=0), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("p", [0, 1, 9, 40])
@pytest.mark.parametrize("cut", [0, 1, 30, 77])
def test_a_merge_is_the_triangle_of_both_and_changes_neither(dtype, t, p, cut):
    rng = np.random.default_rng([p, t, cut])
    A, B = numbers(rng, (77, p), dtype), numbers(rng, (77, t), dtype)
    left, right = swept(A[:cut], B[:cut], 16), swept(A[cut:], B[cut:], 16)
    before = [part.copy() for part in (left.R, left.C, left.tail, right.R, right.C, right.tail)]
    check(merge(left, right), A, B)
    after = (left.R, left.C, left.tail, right.R, right.C, right.tail)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_largest_block_width_that_fits_gives_the_same_factor():
    A = np.random.default_rng(3).standard_normal((60, 10))
    for block in (1, 3, 10, 99):
        check(swept(A, A[:, :2], 20, block), A, A[:, :2])


def test_a_nan_is_seen_on_the_diagonal_of_r():
    A = np.random.default_rng(4).standard_normal((50, 6))
    A[33, 2] = np.nan
    assert not np.isfinite(swept(A, A[:, :0], 16).R.diagonal()).all()


def test_columns_from_1e_minus_150_to_1e150_do_not_overflow():
    A = np.random.default_rng(5).standard_normal((50, 4)) * [1e-150, 1, 1e75, 1e150]
    ours, theirs = np.abs(np.triu(swept(A, A[:, :0], 16).R)), np.abs(np.linalg.qr(A, mode="r"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# LAPACK without the GIL


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(("p", "t"), [(1, 0), (6, 0), (6, 3), (30, 2), (40, 0)])
def test_the_f2py_functions_give_the_same_bits(monkeypatch, dtype, p, t):
    rng = np.random.default_rng(p)
    A, B = numbers(rng, (375, p), dtype), numbers(rng, (375, t), dtype)

    def answer():
        whole = merge(swept(A[:180], B[:180], 16), grown(A[180:], 16) if not t else swept(A[180:], B[180:], 16))
        return np.triu(whole.R).tobytes(), whole.C.tobytes(), whole.tail.tobytes()

    assert pointers.releases_the_gil()
    fast = answer()
    for name in list(pointers.ROUTINES):
        monkeypatch.setitem(pointers.ROUTINES, name, None)
    assert not pointers.releases_the_gil()
    assert answer() == fast


def capsule(signature: bytes):
    """What SciPy publishes: an address with a name that says how to call it."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(1, signature, None)


KNOWN = b"void (int *, int *, int *, int *, d *, int *, d *, int *, d *, int *, d *, int *)".replace(
    b"d *", b"__pyx_t_5scipy_6linalg_13cython_lapack_d *"
)


def publishing(monkeypatch, name, signature):
    """A SciPy whose cython_lapack publishes one routine; the capsule has to be kept, or its name would be freed."""
    held = capsule(signature)
    module = SimpleNamespace(__name__="scipy.linalg.cython_lapack", __pyx_capi__={name: held})
    monkeypatch.setitem(pointers.ARGUMENTS, "tpqrt", (module, pointers.ARGUMENTS["tpqrt"][1]))
    return module


@pytest.mark.parametrize("signature", [KNOWN, KNOWN.replace(b"__pyx_t_5scipy_6linalg_13cython_lapack_d", b"double")])
def test_a_routine_with_the_signature_that_we_know_is_taken(monkeypatch, signature):
    module = publishing(monkeypatch, "dtpqrt", signature)
    assert pointers._pointer(module, "d", "tpqrt", pointers.ARGUMENTS["tpqrt"][1]) == 1


@pytest.mark.parametrize(
    "foreign",
    [
        KNOWN.replace(b"int *)", b"int *, int *)"),  # one argument more
        KNOWN.replace(b"int *, int *, int *, int *,", b"int64_t *, int64_t *, int64_t *, int64_t *,"),  # ILP64
        KNOWN.replace(b"cython_lapack_d", b"cython_lapack_s"),  # another precision
        KNOWN.replace(b"void", b"int"),
    ],
)
def test_a_routine_with_a_foreign_signature_is_refused(monkeypatch, foreign):
    module = publishing(monkeypatch, "dtpqrt", foreign)
    assert module.__pyx_capi__
    assert pointers.load("d", "tpqrt") is None


def test_a_scipy_without_the_routines_is_served_by_f2py(monkeypatch):
    monkeypatch.setitem(pointers.ARGUMENTS, "tpmqrt", (SimpleNamespace(), pointers.ARGUMENTS["tpmqrt"][1]))
    assert pointers.load("z", "tpmqrt") is None


def test_the_scipy_that_is_installed_publishes_what_we_know():
    assert pointers.releases_the_gil()
    both = {prefix + name for prefix in "dz" for name in ("tpqrt", "tpmqrt", "trmm", "gemm")}
    assert both | {"dsyrk", "zherk"} == set(pointers.ROUTINES)


@pytest.fixture
def progress():
    """How often a second thread came to run during a call, while this one never gives the GIL away by itself."""
    count, stop, interval = [0], threading.Event(), sys.getswitchinterval()

    def go_on():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0005)  # gives the GIL back

    def during(call):
        before = count[0]
        call()
        return count[0] - before

    thread = threading.Thread(target=go_on)
    thread.start()
    sys.setswitchinterval(1000)
    yield during
    sys.setswitchinterval(interval)
    stop.set()
    thread.join()


def long_factor(p=400, rows=12_000):
    rng = np.random.default_rng(6)
    return np.zeros((p, p), order="F"), np.asfortranarray(rng.standard_normal((rows, p)))


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has no GIL")
def test_another_thread_goes_on_while_a_slab_is_factored(progress):
    R, B = long_factor()
    qr = Tpqrt(400, 16, R.dtype)
    assert progress(lambda: qr(R, B)) > 0


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has no GIL")
def test_the_f2py_function_holds_every_other_thread_up(progress):
    """The reason for the capsules; when this fails, SciPy lets go of the GIL and they can be dropped."""
    R, B = long_factor()
    # In place: copying an array would let go of the GIL too.
    assert progress(lambda: f2py.dtpqrt(0, 16, R, B, overwrite_a=1, overwrite_b=1)) == 0


def test_columns_that_are_not_contiguous_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        leading(np.zeros((4, 3)))


def test_a_thread_keeps_its_workspace_and_shares_it_with_nobody():
    first = sweep.workspace(5, 1, np.dtype(float), 64, None)
    assert sweep.workspace(5, 1, np.dtype(float), 64, None) is first
    other = []
    thread = threading.Thread(target=lambda: other.append(sweep.workspace(5, 1, np.dtype(float), 64, None)))
    thread.start()
    thread.join()
    assert other[0] is not first
