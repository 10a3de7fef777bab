"""What any kind of job is given to work with, and what it leaves behind."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipelines.inputs import Inputs
from pipelines.layout import Layout, Shape
from pipelines.matrix import Source, System
from pipelines.methods.options import CholeskyQr, Exact, Tsqr
from pipelines.methods.problem import Runs
from pipelines.storage import Staging

WIDE_ENOUGH, TALL_ENOUGH = 128, 64
"""Columns from which a shared triangle pays, and rows for each of them: TSQR's tasks each begin by reflectors."""


@dataclass(frozen=True)
class Step:
    """A read of the matrix that is certain to come."""

    name: str
    flops: float
    factors: bool = False
    """True when its arithmetic is that of the sweep, and its states merge at n³."""
    writes: int = 0
    """Bytes that its tasks write."""
    sums: bool = False
    """True when its states are a few vectors for each right-hand side."""
    products: bool = False
    """True when nearly all of its arithmetic is products with many columns, at a good part of the rate of dgemm."""


@dataclass(frozen=True)
class Outcome:
    """What came out: small arrays in memory, large ones already at the target."""

    arrays: Mapping[str, np.ndarray]
    dimensions: Mapping[str, tuple[str, ...]]
    """Xarray's names of the axes, by array."""
    certificate: Any
    """Of the kind's own class; it has `to_dict`."""
    shortfalls: tuple[str, ...]
    """What the job requires and the certificate does not reach."""
    identity: tuple[int, int, int]
    """Of matrix, rhs and weights, as the first pass met them."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attributes of arrays, by name."""
    preview: Mapping[str, Any] = field(default_factory=dict)
    """A few numbers for people."""
    form: str | None = None
    """What was written, where the job left that open."""


@dataclass(frozen=True)
class Work:
    """A job that is about to run: its arrays opened and cut, and the means to read and to write."""

    job: Any
    inputs: Inputs
    layout: Layout
    passes: Runs
    staging: Staging | None
    planned: tuple[str, ...]
    """Warnings of the plan."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the plan, and what came out otherwise than planned so far."""
        return (*self.planned, *self.passes.said)

    @property
    def run(self) -> str:
        """What this run's readers of arrays are told apart by from those of others, which saw other metadata."""
        return getattr(self.inputs.A, "run", "") or uuid.uuid4().hex

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of the answer."""
        return answer_dtype(self.job, self.layout)

    def system(self, b: Source | None = None, weights: Source | None = None) -> System:
        """The rows to read."""
        omit, writes = self.job.nan == "omit_rows", self.layout.out_rows > 0
        return System(
            self.inputs.A, b, weights, self.layout.shape.dtype, omit_rows=omit, block_rows=self.layout.block_rows,
            keep_places=writes,
        )  # fmt: skip


class Kind(Protocol):
    """A module of this package."""

    def writes(self, job: Any, *, wide: bool) -> bool:
        """True when rows are written as they are read."""

    def method(self, job: Any, shape: Shape) -> Any:
        """The method that will be used, with its options."""

    def basis_of(self, job: Any, shape: Shape) -> int | None:
        """Columns of the basis that a randomized method takes the rows to; None when R itself is computed."""

    def steps(self, job: Any, layout: Layout) -> list[Step]:
        """The reads that are certain, with their flops.

        Raises:
            PlanRefused: the job cannot be done on a matrix of this shape.
        """

    def result_bytes(self, job: Any, layout: Layout) -> int:
        """What the result takes on a disk, without what describes it."""

    def buffer_bytes(self, layout: Layout) -> int:
        """What a thread of a worker holds beyond the factor and its blocks."""

    def reason(self, job: Any, layout: Layout) -> str:
        """Why it is done like this, for the plan."""

    def solve(self, work: Work) -> Outcome:
        """Read, compute, certify; write what is large."""


def exact_method(job: Any, shape: Shape) -> Exact:
    """The method with the job's options, for the kinds that know no randomized one."""
    return job.method if isinstance(job.method, Exact) else best_exact(shape)


def best_exact(shape: Shape) -> Exact:
    """What finds R fastest; `auto` looks at the shape alone, so that the bits do not depend on the machine."""
    sums = shape.columns >= WIDE_ENOUGH and shape.rows >= TALL_ENOUGH * shape.columns
    return CholeskyQr() if sums else Tsqr()


def no_basis(job: Any, shape: Shape) -> None:  # as above
    """None: R itself is computed."""


def answer_dtype(job: Any, layout: Layout) -> np.dtype[Any]:
    """Number type of the answer."""
    return layout.shape.dtype if job.dtype == "auto" else np.dtype(job.dtype)


def positive_diagonal(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R with a real, non-negative diagonal, which makes it unique at full rank, and the signs (rows,) it took."""
    d = R.diagonal()
    signs = np.where(d == 0, 1, d / np.where(d == 0, 1, np.abs(d)))
    return np.triu(signs.conj()[:, None] * R), signs
