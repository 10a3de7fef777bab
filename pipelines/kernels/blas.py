"""BLAS on rows as they are stored (C order, so columns of Aᵀ): their Gram matrix, and their division by a triangle."""

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import blas

from pipelines.kernels.pointers import ROUTINES, address, prefix_of

SMALL_COLUMNS, SMALL_WORK = 24, 10**6
"""OpenBLAS multiplies small real matrices without copying them first: at most so many multiplications, which for so few
columns is 2 to 3 times as fast as syrk."""


class Products:
    """S P in place for upper triangular P (p, p), and [A b]ᴴ[A b]: BLAS xTRMM, xSYRK or xHERK, xGEMM."""

    def __init__(self, p: int, dtype: np.dtype[Any]) -> None:
        self.p, self.prefix = p, prefix_of(dtype)
        self.complex = self.prefix == "z"
        self._gram = np.zeros((p, p), dtype, order="F")
        self._rank_k = "herk" if self.complex else "syrk"
        letters = {letter: ctypes.c_char(letter.encode()) for letter in "LUNT"}
        self._ints = {name: ctypes.c_int(1) for name in ("rows", "n", "lda", "p")}
        self._ints["p"].value = p
        # One and zero: complex numbers of two doubles each, whose first is the real number that herk wants.
        self._one, self._zero = (ctypes.c_double * 2)(1.0, 0.0), (ctypes.c_double * 2)(0.0, 0.0)
        self._kept = letters
        self._refs = {name: ctypes.addressof(value) for name, value in (letters | self._ints).items()}
        self._refs |= {"1.0": ctypes.addressof(self._one), "0.0": ctypes.addressof(self._zero)}

    def divide(self, S: np.ndarray, P: np.ndarray) -> np.ndarray:
        """S (rows, p) in row order, times P = R⁻¹ (p, p) in column order, in place: Sᵀ becomes Pᵀ Sᵀ."""
        if not self._call("trmm", "L U T N p rows 1.0", P, "p", S, "lda", rows=len(S), lda=_stride(S)):
            S[...] = getattr(blas, self.prefix + "trmm")(1.0, P, S.T, trans_a=1).T
        return S

    def gram(self, A: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """[A b]ᴴ[A b] (p, p) of A (rows, p - k) and b (rows, k) in row order, of which the
        upper triangle counts; the next call overwrites it.
        """
        G, n = self._gram, A.shape[1]
        if b is not None:
            G[:n, n:] = A.T @ b.conj()
            G[n:, n:] = np.triu(b.T @ b.conj())
        small = SMALL_WORK // max(1, n * n)
        if n <= SMALL_COLUMNS and not self.complex and len(A) > 0:
            for start in range(0, len(A), small):
                self._multiply(A[start : start + small], "1.0" if start else "0.0")
        else:
            self._square(A)
        if self.complex:  # AᵀĀ, of which the conjugate is AᴴA
            np.conjugate(G, out=G)
        return G

    def _square(self, A: np.ndarray) -> None:
        n, G = A.shape[1], self._gram
        numbers = {"rows": len(A), "n": n, "lda": _stride(A)}
        if not self._call(self._rank_k, "U N n rows 1.0", A, "lda 0.0", G, "p", **numbers):
            G[:n, :n] = np.triu(getattr(blas, self.prefix + self._rank_k)(1.0, A.T))

    def _multiply(self, A: np.ndarray, beta: str) -> None:
        n, G = A.shape[1], self._gram
        numbers = {"rows": len(A), "n": n, "lda": _stride(A)}
        if not self._call("gemm", "N T n n rows 1.0", A, "lda", A, f"lda {beta}", G, "p", **numbers):
            G[:n, :n] = blas.dgemm(1.0, A.T, A.T, trans_b=1) + (G[:n, :n] if beta == "1.0" else 0)

    def _call(self, name: str, *arguments: Any, **numbers: int) -> bool:
        """False when SciPy does not publish the routine; words are numbers and letters, arrays are their addresses."""
        routine = ROUTINES[self.prefix + name]
        if routine is None:
            return False
        for key, value in numbers.items():
            self._ints[key].value = value
        found: list[int] = []
        for one in arguments:
            found += [self._refs[word] for word in one.split()] if isinstance(one, str) else [address(one)]
        routine(*found)
        return True


def multiply(A: np.ndarray, B: np.ndarray, C: np.ndarray, *, add: bool = False) -> None:
    """C = A B, or C += A B, of real matrices whose rows or columns are contiguous, C's columns; in any thread."""
    if ROUTINES["dgemm"] is None:
        C[...] = A @ B + C if add else A @ B
        return
    rows, columns = C.shape
    letters = [ctypes.c_char(b"N" if _by_columns(one) else b"T") for one in (A, B)]
    sizes = [ctypes.c_int(size) for size in (rows, columns, A.shape[1], *map(_leading, (A, B, C)))]
    one, beta = ctypes.c_double(1.0), ctypes.c_double(1.0 if add else 0.0)
    m, n, k, lda, ldb, ldc = map(ctypes.addressof, sizes)
    ROUTINES["dgemm"](
        *map(ctypes.addressof, letters), m, n, k, ctypes.addressof(one), address(A), lda, address(B), ldb,
        ctypes.addressof(beta), address(C), ldc,
    )  # fmt: skip


def _by_columns(array: np.ndarray) -> bool:
    return array.strides[0] == array.itemsize and array.strides[1] >= array.shape[0] * array.itemsize


def _leading(array: np.ndarray) -> int:
    return max(array.strides) // array.itemsize


def in_row_order(array: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """True when BLAS can read the rows (rows, columns) where they are."""
    itemsize, (down, across) = array.itemsize, array.strides
    contiguous = across == itemsize or array.shape[1] == 1
    return array.dtype == dtype and array.flags.aligned and contiguous and down >= array.shape[1] * itemsize


def _stride(array: np.ndarray) -> int:
    """Elements from one row to the next."""
    return max(1, array.strides[0] // array.itemsize if len(array) > 1 else array.shape[1])
