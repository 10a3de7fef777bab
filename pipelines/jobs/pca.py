"""The PCA job: what its file may say."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipelines.fields import NOT_BOOL, needed
from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol


def _whole(value: Any) -> Any:
    """1.0 is neither: as a count it would be one component, as a fraction all of them."""
    if isinstance(value, float) and value >= 1:
        raise needed("a whole number, a fraction of the variance below 1, or all")
    return value


Fraction = Annotated[float, Field(gt=0, lt=1), NOT_BOOL]


class RequirePCA(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    orthogonality: Bound | None = None
    """Largest ||UᵀU - I|| accepted (Frobenius norm), U being the scores at length one."""


class PCA(MatrixJob):
    """Principal components of the rows of A: the SVD of A with the mean of each column taken off."""

    kind: Literal["pca"] = "pca"
    """The kind of job."""
    nan: Literal["error", "omit_rows", "mean"] = "error"  # type: ignore[assignment]  # one choice more than others
    """What to do with NaN in A: stop, leave such rows out (their scores are zeros), or take the column's mean."""
    n_components: Literal["all"] | Annotated[int, Field(ge=1), NOT_BOOL, BeforeValidator(_whole)] | Fraction = "all"
    """all, a number, or the fraction of the variance that the components have to explain, such as 0.95."""
    scale: bool = False
    """Divide each column by its standard deviation: the components of the correlation matrix."""
    scores: bool = False
    """Write the scores (m, k) too, chunk by chunk as A is stored: one more read."""
    whiten: bool = False
    """Scores of variance one."""
    rtol: Rtol = "auto"
    """The rank: singular values below rtol times the largest count as zero, and have no components."""
    require: RequirePCA = RequirePCA()
    """What the certificate has to reach."""
