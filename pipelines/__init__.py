"""Linear algebra on matrices larger than memory: what a job says, what it costs, and what comes out.

from pipelines import load_job, make_plan, run

job = load_job("configs/jobs/flights.yaml")
print(make_plan(job).seconds)
result = run(job)
print(result.certificate.statement)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.certify import Certificate as Certificate
    from pipelines.execute import run as run
    from pipelines.jobs import PCA as PCA
    from pipelines.jobs import QR as QR
    from pipelines.jobs import SVD as SVD
    from pipelines.jobs import Apply as Apply
    from pipelines.jobs import ArraySource as ArraySource
    from pipelines.jobs import LeastSquares as LeastSquares
    from pipelines.jobs import LowRank as LowRank
    from pipelines.jobs import PCATransform as PCATransform
    from pipelines.jobs import Pseudoinverse as Pseudoinverse
    from pipelines.linear_operator import operator_of as operator_of
    from pipelines.load import load_job as load_job
    from pipelines.plan import make_plan as make_plan
    from pipelines.result import Result as Result
    from pipelines.result import open_result as open_result
    from pipelines.verification import Verification as Verification
    from pipelines.verification import verify as verify

_HOMES = {
    "PCA": "pipelines.jobs",
    "PCATransform": "pipelines.jobs",
    "QR": "pipelines.jobs",
    "SVD": "pipelines.jobs",
    "Pseudoinverse": "pipelines.jobs",
    "Apply": "pipelines.jobs",
    "ArraySource": "pipelines.jobs",
    "Certificate": "pipelines.certify",
    "LeastSquares": "pipelines.jobs",
    "LowRank": "pipelines.jobs",
    "Result": "pipelines.result",
    "load_job": "pipelines.load",
    "make_plan": "pipelines.plan",
    "open_result": "pipelines.result",
    "operator_of": "pipelines.linear_operator",
    "run": "pipelines.execute",
    "Verification": "pipelines.verification",
    "verify": "pipelines.verification",
}

__all__ = [
    "PCA",
    "QR",
    "SVD",
    "Apply",
    "ArraySource",
    "Certificate",
    "LeastSquares",
    "LowRank",
    "PCATransform",
    "Pseudoinverse",
    "Result",
    "Verification",
    "load_job",
    "make_plan",
    "open_result",
    "operator_of",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
