"""The job that takes rows to principal components and back: what its file may say."""

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from pipelines.jobs.apply import OperatorInput
from pipelines.jobs.base import MatrixJob, RequireFactors, must_be_apart


class PCATransform(MatrixJob):
    """Scores of rows that a PCA has not seen, or rows from their scores; the matrix is read once."""

    kind: Literal["pca_transform"] = "pca_transform"
    """The kind of job."""
    pca: OperatorInput
    """Path or URL of a result of `kind: pca`."""
    inverse: bool = False
    """false: the matrix holds rows (m, n) and their scores are written; true: it holds scores (m, k), and rows are."""
    nan: Literal["error", "omit_rows", "mean"] = "error"  # type: ignore[assignment]  # as for pca
    """What to do with NaN: stop, write zeros for such rows, or take the mean of the PCA for it."""
    require: RequireFactors = RequireFactors()
    """What the certificate has to reach."""

    @field_validator("pca")
    @classmethod
    def _output_is_apart_too(cls, pca: Any, info: ValidationInfo) -> Any:
        must_be_apart(info.data.get("output"), "pca", pca)
        return pca
