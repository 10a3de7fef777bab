"""The QR job: what its file may say."""

from typing import Literal

from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol


class RequireQR(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    orthogonality: Bound | None = None
    """Largest ||QᵀQ - I|| accepted (Frobenius norm)."""
    reconstruction_error: Bound | None = None
    """Largest ||A - QR|| / ||A|| accepted (Frobenius norm)."""


class QR(MatrixJob):
    """A = QR with orthonormal Q (m, n) and upper triangular R (n, n), whose diagonal is not negative."""

    kind: Literal["qr"] = "qr"
    """The kind of job."""
    form: Literal["r", "explicit", "implicit"] = "r"
    """r writes R alone, from one read; explicit Q too, chunk by chunk as A is stored; implicit keeps Q's factors."""
    pivoting: bool = False
    """A[:, P] = QR with the columns in the order that leaves the largest norm for each; Q and R stop at the rank."""
    rtol: Rtol = "auto"
    """The rank that the certificate states: singular values below rtol times the largest count as zero."""
    require: RequireQR = RequireQR()
    """What the certificate has to reach."""
