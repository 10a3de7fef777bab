"""A pseudoinverse or a Q kept as an operator: small factors and the address of A, which is read again to apply them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.certify import FactorCertificate
from pipelines.errors import BadData
from pipelines.kernels.basis import Basis
from pipelines.result import Result, open_result, whole

FORMS = {"pseudoinverse": "operator", "qr": "implicit"}
"""The forms of results that can be applied, by kind of job."""


@dataclass(frozen=True)
class Operator:
    """S = Q F for the system S of rows, which is A (m, n) or, when A is wide, Aᴴ; and S⁺ = K Qᴴ."""

    result: Result
    shape: tuple[int, int]
    """m and n of A."""
    cut: tuple[int, int, int]
    """Rows of a slab, of a block and of a span, as A was factored."""
    fingerprint: int | None
    """Of A's chunks when it was factored; None for an array that was never stored."""
    certificate: FactorCertificate
    basis: Basis
    """The rows of Q from those of S."""
    K: np.ndarray | None
    """(columns of S, r); None for a Q alone."""
    V: np.ndarray | None
    """Orthonormal columns that span the rows of S which count; None when all do."""
    middle: np.ndarray | None
    """S S⁺ = Q · middle · Qᴴ, (r, r); None for the identity, which it is without a ridge."""
    small: np.ndarray | None
    """S⁺ S, (columns, columns); None for the identity or V Vᴴ."""
    signs: np.ndarray | None
    """Of the columns of an explicit Q, (n,)."""

    @property
    def url(self) -> str | None:
        """Where it is stored."""
        return self.result.url

    @property
    def where(self) -> str:
        """Where it is stored, for people."""
        return self.result.url or "in memory"

    @property
    def summary(self) -> dict[str, Any]:
        """What the result says of itself."""
        return self.result.summary

    @property
    def is_q(self) -> bool:
        """True for the Q of a QR factorisation."""
        return self.K is None

    def onto_rows(self, B: np.ndarray) -> np.ndarray:
        """S⁺ S B for B (columns, k), which takes no read."""
        if self.small is not None:
            return np.asarray(self.small @ B)
        return B if self.V is None else np.asarray(self.V @ (self.V.conj().T @ B))


def operator_from(given: Any) -> Operator:
    """The operator that a result holds.

    Raises:
        BadData: there is no result, or it holds no operator.
    """
    result = given if isinstance(given, Result) else open_result(given)
    job = result.summary.get("job") or {}
    kind, form = str(result.summary.get("kind")), result.summary.get("form", job.get("form"))
    where = result.url or "in memory"
    if kind not in FORMS:
        raise BadData(
            f"The result {where} is of kind {kind}, and `kind: apply` needs an operator: of kind pseudoinverse with "
            "form: operator, or of kind qr with form: implicit."
        )
    if form != FORMS[kind]:
        written = "pinv" if kind == "pseudoinverse" else "R alone" if form == "r" else "Q"
        raise BadData(
            f"The result {where} of kind {kind} holds {written} (form: {form}) and no operator. "
            f"Run its job again with `form: {FORMS[kind]}`"
            + (", or multiply by what is there." if form != "r" else ".")
        )
    with whole(where):
        held = _qr(result) if kind == "qr" else _pseudoinverse(result)
        _must_fit(held)
    return held


def _must_fit(held: Operator) -> None:
    """Raises ValueError where the factors are not those of one matrix."""
    m, n = held.shape
    rows, r = held.basis.by.shape
    expected = {"R2": (r, r), "K": (min(m, n), r)}
    found = {
        "R2": () if held.basis.R2 is None else held.basis.R2.shape,
        "K": (min(m, n), r) if held.K is None else held.K.shape,
    }
    R2, K = held.basis.R2, held.K
    factors = [held.basis.by, R2, K, held.V, held.middle, held.small, held.signs]
    if not all(np.isfinite(factor).all() for factor in factors if factor is not None):
        raise ValueError("a factor holds NaN or infinity")
    if min(held.cut) < 1:
        raise ValueError(f"rows of slabs, blocks and spans are {held.cut}")
    if found != expected or (rows != min(m, n) and held.basis.order is None):
        raise ValueError(f"the factors have shapes {(rows, r)}, {found['R2']} and {found['K']}")


def _known(result: Result) -> tuple[Result, tuple[int, int], tuple[int, int, int], int | None, FactorCertificate]:
    """What any operator says of itself."""
    summary = result.summary
    plan, stored, certificate = summary["plan"], summary["input"].get("matrix"), result.certificate
    m, n = (int(length) for length in plan["shape"][:2])
    cut = int(plan["slab_rows"]), int(plan["block_rows"]), int(plan["span_rows"])
    assert isinstance(certificate, FactorCertificate)
    return result, (m, n), cut, None if stored is None else int(stored["fingerprint"], 16), certificate


def _qr(result: Result) -> Operator:
    R1 = np.asfortranarray(result["R1"])
    order = result["P"][: len(R1)] if "P" in result.names else None
    basis = Basis(R=R1, R2=np.asfortranarray(result["R2"]), order=order)
    return Operator(*_known(result), basis, None, None, None, None, result["signs"])


def _pseudoinverse(result: Result) -> Operator:
    R2, K, ridge = np.asfortranarray(result["R2"]), result["K"], float(result.summary["job"]["ridge"])
    if "R1" in result.names:
        return Operator(*_known(result), Basis(R=np.asfortranarray(result["R1"]), R2=R2), K, None, None, None, None)
    W = result["W"]
    basis, norms = Basis(W=W, R2=R2), np.linalg.norm(W, axis=0)
    V = W / np.where(norms > 0, norms, 1)  # W = V S⁻¹
    if not ridge:
        return Operator(*_known(result), basis, K, V, None, None, None)
    F = (R2 / np.where(norms > 0, norms, 1)) @ V.conj().T
    return Operator(*_known(result), basis, K, None, F @ K, K @ F, None)
