"""Two LAPACK routines in place, on arrays of ours: QR of a triangle above a rectangle, and its reflectors applied."""

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import lapack

from pipelines.kernels.pointers import ROUTINES, address, leading, prefix_of


class Tpqrt:
    """QR of [R; B] in place, with R (p, p) upper triangular: R becomes the factor of both.

    LAPACK xTPQRT (version 3.4): block reflectors of `block` columns.  `pentagon` is its L: 0 when B (rows, p) is
    a full rectangle, p when B is upper triangular too, which costs a third.  The strict lower triangle of R
    is neither read nor written.  After a call B holds the reflectors and `T` their block factors, for Tpmqrt.
    """

    def __init__(self, p: int, block: int, dtype: np.dtype[Any], *, pentagon: int = 0) -> None:
        self.p, self.block, self.pentagon = p, max(1, min(block, p)), pentagon
        self.prefix = prefix_of(dtype)
        self.T = np.zeros((self.block, max(p, 1)), dtype, order="F")
        self._work = np.empty(max(1, self.block * p), dtype)
        self._call = ROUTINES[self.prefix + "tpqrt"]
        self._ints = {name: ctypes.c_int(value) for name, value in self._sizes().items()}
        self._refs = {name: ctypes.addressof(value) for name, value in self._ints.items()}

    def _sizes(self) -> dict[str, int]:
        return {
            "m": 0,
            "n": self.p,
            "l": self.pentagon,
            "nb": self.block,
            "lda": 1,
            "ldb": 1,
            "ldt": self.block,
            "info": 0,
        }

    def __call__(self, R: np.ndarray, B: np.ndarray) -> None:
        """R (p, p) and B (rows, p), both in column order; each may be a window of a taller array."""
        if self.p == 0 or B.shape[0] == 0:
            return
        if self._call is None:
            self._through_f2py(R, B)
            return
        ints, ref = self._ints, self._refs
        ints["m"].value, ints["lda"].value, ints["ldb"].value = B.shape[0], leading(R), leading(B)
        self._call(
            ref["m"], ref["n"], ref["l"], ref["nb"], address(R), ref["lda"], address(B), ref["ldb"],
            address(self.T), ref["ldt"], address(self._work), ref["info"],
        )  # fmt: skip
        if ints["info"].value:
            raise ValueError(f"{self.prefix}tpqrt: argument {-ints['info'].value} is not valid")

    def _through_f2py(self, R: np.ndarray, B: np.ndarray) -> None:
        r, b, t, info = getattr(lapack, self.prefix + "tpqrt")(self.pentagon, self.block, R, B)
        if info:
            raise ValueError(f"{self.prefix}tpqrt: argument {-info} is not valid")
        R[...], B[...], self.T[...] = np.triu(r) + np.tril(R, -1), b, t


class Tpmqrt:
    """[C; D] ← Qᴴ [C; D] in place, Q being the reflectors of the last Tpqrt: C (p, t), D (rows, t)."""

    def __init__(self, qr: Tpqrt, t: int) -> None:
        self.qr, self.t = qr, t
        dtype = qr.T.dtype
        self._work = np.empty(max(1, qr.block * t), dtype)
        self._call = ROUTINES[qr.prefix + "tpmqrt"]
        self._side, self._trans = ctypes.c_char(b"L"), ctypes.c_char(b"T" if qr.prefix == "d" else b"C")
        names = ("m", "n", "k", "l", "nb", "ldv", "ldt", "lda", "ldb", "info")
        self._ints = {name: ctypes.c_int(0) for name in names}
        for name, value in {"n": t, "k": qr.p, "l": qr.pentagon, "nb": qr.block, "ldt": qr.block}.items():
            self._ints[name].value = value

    def __call__(self, V: np.ndarray, C: np.ndarray, D: np.ndarray) -> None:
        """V (rows, p): what Tpqrt left in B; C (p, t) and D (rows, t) in column order."""
        if self.qr.p == 0 or self.t == 0 or D.shape[0] == 0:
            return
        if self._call is None:
            self._through_f2py(V, C, D)
            return
        ints = self._ints
        ints["m"].value, ints["ldv"].value = D.shape[0], leading(V)
        ints["lda"].value, ints["ldb"].value = leading(C), leading(D)
        ref = {name: ctypes.addressof(value) for name, value in ints.items()}
        self._call(
            ctypes.addressof(self._side), ctypes.addressof(self._trans),
            ref["m"], ref["n"], ref["k"], ref["l"], ref["nb"], address(V), ref["ldv"], address(self.qr.T), ref["ldt"],
            address(C), ref["lda"], address(D), ref["ldb"], address(self._work), ref["info"],
        )  # fmt: skip
        if ints["info"].value:
            raise ValueError(f"{self.qr.prefix}tpmqrt: argument {-ints['info'].value} is not valid")

    def _through_f2py(self, V: np.ndarray, C: np.ndarray, D: np.ndarray) -> None:
        trans = self._trans.value.decode()
        call = getattr(lapack, self.qr.prefix + "tpmqrt")
        c, d, info = call(self.qr.pentagon, V, self.qr.T, C, D, side="L", trans=trans)
        if info:
            raise ValueError(f"{self.qr.prefix}tpmqrt: argument {-info} is not valid")
        C[...], D[...] = c, d
