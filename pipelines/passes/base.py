"""What a pass is: a monoid over slabs of rows.

Merging is associative up to rounding, and the tree of merges is fixed by the numbers of the spans, so an answer
has the same bits on any number of workers, in whatever order tasks finish, and after any retry.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from pipelines.matrix import Slab, Span

State = TypeVar("State")


class Pass(Protocol[State]):
    """One read of a system of rows; its fields are what the read needs to know."""

    @property
    def name(self) -> str:
        """A name for the dashboard: factor, verify, ..."""

    @property
    def slab_rows(self) -> int:
        """Rows that one absorb may see at most."""

    @property
    def group(self) -> int:
        """Slabs that go into one state before it is merged: longer chains round more, more states merge more."""

    @property
    def fan_in(self) -> int:
        """States that one merge task takes."""

    def start(self) -> State:
        """The state of no rows."""

    def absorb(self, state: State, slab: Slab) -> State:
        """The state with the slab's rows added; `state` itself may be changed."""

    def merge(self, left: State, right: State) -> State:
        """The state of the rows of both; neither is changed."""

    def finish(self, state: State, span: Span) -> State:
        """Called once when a span's rows are all absorbed: a pass that writes, writes here."""

    def finite(self, state: State) -> bool:
        """False when a NaN or an infinity has reached the state."""


class LaterPass:
    """What passes that only add up have in common; one that is the first to see A says itself what is finite."""

    def finish(self, state: Any, span: Span) -> Any:  # passes that write need it
        """Nothing is left to do."""
        return state

    def finite(self, state: Any) -> bool:
        """True: the factor pass has looked at every entry, and the input's identity is compared."""
        return True


def settled(step: Any) -> Any:
    """The same with its arrays as they are after a journey, contiguous, and at addresses that BLAS takes.

    NumPy multiplies others by itself, or copies them to another order first, and the bits would depend on who ran it.
    """
    if isinstance(step, np.ndarray):
        return step if step.flags.aligned and step.flags.forc else step.copy("A")
    if not is_dataclass(step) or isinstance(step, type):
        return step
    held = {one.name: getattr(step, one.name) for one in fields(step) if one.init}
    changed = {name: new for name, old in held.items() if (new := settled(old)) is not old}
    return replace(step, **changed) if changed else step
