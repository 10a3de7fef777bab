"""Two BLAS routines on arrays of ours: rows times a triangle in place, and the Gram matrix of rows."""

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import blas

from pipelines.kernels.pointers import ROUTINES, address, leading, prefix_of


class Products:
    """S P in place for upper triangular P (p, p), and SᴴS: BLAS xTRMM and xSYRK or xHERK."""

    def __init__(self, p: int, dtype: np.dtype[Any]) -> None:
        self.p, self.prefix = p, prefix_of(dtype)
        self._gram = np.zeros((p, p), dtype, order="F")
        self._rank_k = "syrk" if self.prefix == "d" else "herk"
        self._trmm, self._syrk = ROUTINES[self.prefix + "trmm"], ROUTINES[self.prefix + self._rank_k]
        letters = {letter: ctypes.c_char(letter.encode()) for letter in "RUNTC"}
        self._ints = {"m": ctypes.c_int(0), "p": ctypes.c_int(p), "ld": ctypes.c_int(1)}
        # One and zero: complex numbers of two doubles each, whose first is the real number that herk wants.
        self._one, self._zero = (ctypes.c_double * 2)(1.0, 0.0), (ctypes.c_double * 2)(0.0, 0.0)
        self._kept = letters
        self._refs = {name: ctypes.addressof(value) for name, value in (letters | self._ints).items()}
        self._numbers = ctypes.addressof(self._one), ctypes.addressof(self._zero)

    def divide(self, S: np.ndarray, P: np.ndarray) -> np.ndarray:
        """S (rows, p) in column order, times P = R⁻¹ in place."""
        if self._trmm is None:
            S[...] = getattr(blas, self.prefix + "trmm")(1.0, P, S, side=1)
            return S
        self._ints["m"].value, self._ints["ld"].value = S.shape[0], leading(S)
        ref, one = self._refs, self._numbers[0]
        U, N = ref["U"], ref["N"]
        self._trmm(ref["R"], U, N, N, ref["m"], ref["p"], one, address(P), ref["p"], address(S), ref["ld"])
        return S

    def gram(self, S: np.ndarray) -> np.ndarray:
        """SᴴS (p, p) of S (rows, p) in column order, upper triangle and zeros below; the next call overwrites it."""
        if self._syrk is None:
            adjoint = 1 if self.prefix == "d" else 2
            self._gram[...] = np.triu(getattr(blas, self.prefix + self._rank_k)(1.0, S, trans=adjoint))
            return self._gram
        self._ints["m"].value, self._ints["ld"].value = S.shape[0], leading(S)
        ref, (one, zero) = self._refs, self._numbers
        adjoint, p = ref["T" if self.prefix == "d" else "C"], ref["p"]
        self._syrk(ref["U"], adjoint, p, ref["m"], one, address(S), ref["ld"], zero, address(self._gram), p)
        return self._gram
