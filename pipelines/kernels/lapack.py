"""Three LAPACK routines called without the GIL, without copies, and with a leading dimension of our choice.

scipy.linalg.lapack holds the GIL while it runs and copies what is not contiguous.  The same routines lie in
scipy.linalg.cython_lapack as C pointers with a signature; ctypes calls them as they are.  A SciPy whose
signature is not the one written here is served by the f2py functions: slower on several threads, the same bits.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_lapack, lapack

TAKES_POINTERS = {"tpqrt": 12, "tpmqrt": 17}
"""Number of arguments of each routine in LAPACK 3.4 and later; all are pointers, the last is INFO."""


def _signature(name: str, element: str) -> str:
    """The signature that SciPy 1.11 to 1.18 publish, with `element` in the place of the number's C type."""
    if name == "tpqrt":
        kinds = ["int"] * 4 + [element, "int"] * 3 + [element, "int"]
    else:
        kinds = ["char"] * 2 + ["int"] * 5 + [element, "int"] * 4 + [element, "int"]
    return "void (" + ", ".join(f"{kind} *" for kind in kinds) + ")"


def _capsule_pointer(prefix: str, name: str) -> int | None:
    """The routine's address, or None when SciPy does not publish it with the signature that we know."""
    capsule = getattr(cython_lapack, "__pyx_capi__", {}).get(prefix + name)
    if capsule is None:
        return None
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found: bytes = get_name(capsule)
    elements = ["__pyx_t_double_complex"] if prefix == "z" else ["double", "__pyx_t_5scipy_6linalg_13cython_lapack_d"]
    if found.decode() not in {_signature(name, element) for element in elements}:
        return None
    return get_pointer(capsule, found)


def _load(prefix: str, name: str) -> Callable[..., None] | None:
    pointer = _capsule_pointer(prefix, name)
    if pointer is None:
        return None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * TAKES_POINTERS[name])(pointer)


_ROUTINES = {prefix + name: _load(prefix, name) for prefix in "dz" for name in TAKES_POINTERS}


def releases_the_gil() -> bool:
    """True when SciPy publishes every routine with the signature that we know."""
    return all(_ROUTINES.values())


def prefix_of(dtype: np.dtype[Any]) -> str:
    """LAPACK's letter: d for float64, z for complex128."""
    return {"d": "d", "D": "z"}[dtype.char]


def address(array: np.ndarray) -> int:
    """Where the array's first element lies."""
    pointer: int = array.__array_interface__["data"][0]
    return pointer


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
        self._call = _ROUTINES[self.prefix + "tpqrt"]
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
        self._call = _ROUTINES[qr.prefix + "tpmqrt"]
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


def leading(array: np.ndarray) -> int:
    """The leading dimension of an array in column order: rows from one column to the next."""
    if array.strides[0] != array.itemsize and array.shape[0] > 1:
        raise ValueError("LAPACK needs columns that are contiguous in memory")
    rows = array.strides[1] // array.itemsize if array.shape[1] > 1 else array.shape[0]
    return max(1, rows, array.shape[0])
