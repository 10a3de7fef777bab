"""Stored scores of rows, or rows of their scores: made once more with the PCA."""

from dataclasses import replace

from pipelines.kinds.base import Work
from pipelines.kinds.pca_transform import map_of
from pipelines.kinds.recheck.base import Rechecked, unmeasured
from pipelines.kinds.recheck.remade import mapped
from pipelines.result import Result


def recheck(work: Work, result: Result) -> Rechecked:
    """Each row against that of today; the certificate is the PCA's, as it was."""
    centring, W, dtype = map_of(work)
    name = "reconstruction" if work.job.inverse else "scores"
    system = replace(work.system(), centring=centring)
    work = replace(work, layout=replace(work.layout, shape=replace(work.layout.shape, dtype=dtype)))
    _, tally, compared = mapped(work, result, system, name, W)
    certificate = replace(unmeasured(work.job.pca.certificate), rows_used=tally.rows, rows_omitted=tally.omitted)
    return Rechecked(certificate, (tally.identity[0], 0, 0), (compared,))
