"""Two BLAS routines on arrays of ours: rows times a triangle in place, and the Gram matrix of rows."""

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import blas

from pipelines.kernels.pointers import ROUTINES, address, leading, prefix_of


class Quotient:
    """W ← S P in place for upper triangular P (p, p), and WᴴW: BLAS xTRMM and xSYRK or xHERK."""

    def __init__(self, p: int, dtype: np.dtype[Any]) -> None:
        self.p, self.prefix = p, prefix_of(dtype)
        self.gram = np.zeros((p, p), dtype, order="F")
        """The upper triangle of the last WᴴW; zeros below."""
        self._rank_k = "syrk" if self.prefix == "d" else "herk"
        self._trmm, self._syrk = ROUTINES[self.prefix + "trmm"], ROUTINES[self.prefix + self._rank_k]
        letters = {letter: ctypes.c_char(letter.encode()) for letter in "RUNTC"}
        self._ints = {"m": ctypes.c_int(0), "p": ctypes.c_int(p), "ld": ctypes.c_int(1)}
        # One and zero: complex numbers of two doubles each, whose first is the real number that herk wants.
        self._one, self._zero = (ctypes.c_double * 2)(1.0, 0.0), (ctypes.c_double * 2)(0.0, 0.0)
        self._kept = letters
        self._refs = {name: ctypes.addressof(value) for name, value in (letters | self._ints).items()}
        self._numbers = ctypes.addressof(self._one), ctypes.addressof(self._zero)

    def __call__(self, S: np.ndarray, P: np.ndarray) -> np.ndarray:
        """S (rows, p) in column order becomes W; WᴴW is `gram`, which the next call overwrites."""
        if self._trmm is None or self._syrk is None:
            return self._through_f2py(S, P)
        self._ints["m"].value, self._ints["ld"].value = S.shape[0], leading(S)
        ref, (one, zero) = self._refs, self._numbers
        m, p, ld, U, N = ref["m"], ref["p"], ref["ld"], ref["U"], ref["N"]
        self._trmm(ref["R"], U, N, N, m, p, one, address(P), p, address(S), ld)
        adjoint = ref["T" if self.prefix == "d" else "C"]
        self._syrk(U, adjoint, p, m, one, address(S), ld, zero, address(self.gram), p)
        return self.gram

    def _through_f2py(self, S: np.ndarray, P: np.ndarray) -> np.ndarray:
        W = getattr(blas, self.prefix + "trmm")(1.0, P, S, side=1)
        adjoint = 1 if self.prefix == "d" else 2
        self.gram[...] = np.triu(getattr(blas, self.prefix + self._rank_k)(1.0, W, trans=adjoint))
        S[...] = W
        return self.gram
