"""Addresses of BLAS and LAPACK routines in SciPy, to be called without the GIL and without copies.

scipy.linalg.blas and scipy.linalg.lapack hold the GIL while they run and copy what is not contiguous.  The same
routines lie in scipy.linalg.cython_blas and cython_lapack as C pointers with a signature; ctypes calls them as
they are.  A SciPy whose signature is not the one written here is served by the f2py functions: slower on several
threads, the same bits.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

ARGUMENTS = {
    "tpqrt": (cython_lapack, "iiiieieieiei"),
    "tpmqrt": (cython_lapack, "cciiiiieieieieiei"),
    "trmm": (cython_blas, "cccciieeiei"),
    "gemm": (cython_blas, "cciiieeieieei"),
    "syrk": (cython_blas, "cciieeieei"),
    "herk": (cython_blas, "cciireirei"),
}
"""Each routine's module and arguments: c a character, i an integer, e an element, r a real number; all pointers."""


def load(prefix: str, name: str) -> Callable[..., None] | None:
    """The routine as a C function, or None when SciPy does not publish it with the signature that we know."""
    module, arguments = ARGUMENTS[name]
    pointer = _pointer(module, prefix, name, arguments)
    if pointer is None:
        return None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arguments))(pointer)


def _pointer(module: Any, prefix: str, name: str, arguments: str) -> int | None:
    capsule = getattr(module, "__pyx_capi__", {}).get(prefix + name)
    if capsule is None:
        return None
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found: bytes = get_name(capsule)
    if found.decode() not in _signatures(module, prefix, arguments):
        return None
    return get_pointer(capsule, found)


def _signatures(module: Any, prefix: str, arguments: str) -> set[str]:
    """What SciPy 1.11 to 1.18 publish: a double is spelled out, or has the name of its module's type."""
    last = module.__name__.rpartition(".")[2]
    reals = ["double", f"__pyx_t_5scipy_6linalg_{len(last)}{last}_d"]
    elements = ["__pyx_t_double_complex"] if prefix == "z" else reals
    return {
        "void (" + ", ".join({"c": "char", "i": "int", "e": e, "r": r}[letter] + " *" for letter in arguments) + ")"
        for e in elements
        for r in reals
    }


ROUTINES = {
    prefix + name: load(prefix, name)
    for prefix in "dz"
    for name in ARGUMENTS
    if prefix + name not in ("zsyrk", "dherk")  # zsyrk is W^T W without the conjugate, dherk does not exist
}
"""The routines by full name; None where f2py has to serve."""


def releases_the_gil() -> bool:
    """True when SciPy publishes every routine with the signature that we know."""
    return all(ROUTINES.values())


def prefix_of(dtype: np.dtype[Any]) -> str:
    """The letter of a routine's name: d for float64, z for complex128."""
    return {"d": "d", "D": "z"}[dtype.char]


def address(array: np.ndarray) -> int:
    """Where the array's first element lies."""
    pointer: int = array.__array_interface__["data"][0]
    return pointer


def leading(array: np.ndarray) -> int:
    """The leading dimension of an array in column order: rows from one column to the next."""
    if array.strides[0] != array.itemsize and array.shape[0] > 1:
        raise ValueError("LAPACK needs columns that are contiguous in memory")
    rows = array.strides[1] // array.itemsize if array.shape[1] > 1 else array.shape[0]
    return max(1, rows, array.shape[0])
