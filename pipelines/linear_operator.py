"""A stored operator as SciPy knows operators."""

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from pipelines.execute import run
from pipelines.jobs import Apply
from pipelines.operators import operator_from
from pipelines.result import Result


def operator_of(result: Result | str, client: Any = None, matrix: Any = None) -> LinearOperator:
    """A result as scipy.sparse.linalg.LinearOperator: A⁺ (n, m), or Q (m, r); each product reads A once.

    `matrix` is A where it lies now, and has to be given when it was an array in memory; `client` as for `run`.

    Raises:
        BadData: the result holds no operator.
    """
    held = operator_from(result)
    m, n = held.shape
    forward, back = ("Q", "Q_adjoint") if held.is_q else ("pinv", "pinv_adjoint")

    def apply(what: str, B: np.ndarray) -> np.ndarray:
        return run(Apply(operator=held.result, compute=(what,), rhs=B, matrix=matrix), client)[what]

    return LinearOperator(
        (m, held.basis.rank) if held.is_q else (n, m),
        matvec=lambda b: apply(forward, b.reshape(-1)),
        rmatvec=lambda b: apply(back, b.reshape(-1)),
        matmat=lambda B: apply(forward, B),
        rmatmat=lambda B: apply(back, B),
        dtype=held.basis.dtype,
    )
