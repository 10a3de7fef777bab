"""Rows that a pass writes as it goes: collected until they fill a chunk, so that each chunk is written once."""

from dataclasses import dataclass, field

import numpy as np

from pipelines import storage


@dataclass(frozen=True)
class Target:
    """A stored array that rows go to, chunk by chunk; columns of it when `columns` is true."""

    url: str
    chunk_rows: int
    columns: bool = False


@dataclass
class Rows:
    """What does not fill a chunk yet; all of it when there is no target."""

    target: Target | None
    start: int | None = None
    """The row that comes first."""
    blocks: list[np.ndarray] = field(default_factory=list)

    def add(self, start: int, block: np.ndarray) -> None:
        """Rows start.. of the output, after those that came before."""
        if self.start is None:
            self.start = start
        self.blocks.append(block)
        if self.target is not None and sum(map(len, self.blocks)) >= self.target.chunk_rows:
            self._write(whole_chunks=True)

    def end(self) -> "Rows":
        """No more rows come in this span."""
        if self.target is not None and self.blocks:
            self._write(whole_chunks=False)
        return self

    def _write(self, *, whole_chunks: bool) -> None:
        assert self.target is not None
        assert self.start is not None
        rows = self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks)
        count = len(rows) // self.target.chunk_rows * self.target.chunk_rows if whole_chunks else len(rows)
        write = storage.write_columns if self.target.columns else storage.write_rows
        write(self.target.url, self.start, rows[:count])
        self.start += count
        self.blocks = [rows[count:].copy()] if count < len(rows) else []

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(self.target, self.start, self.blocks + other.blocks)

    def together(self, columns: int, dtype: np.dtype) -> np.ndarray:
        """All rows, when there was no target, (rows, columns)."""
        return np.concatenate(self.blocks).astype(dtype, copy=False) if self.blocks else np.zeros((0, columns), dtype)
