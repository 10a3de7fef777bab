"""Whose task comes next when several jobs share the workers: start-time fair queueing.

A job's tasks carry tags that rise by one for every round of the whole cluster that it uses.  The scheduler takes the
task with the smallest tag.  A pass begins at the tag that is being served now, or where the job's own last pass ended:
so a newcomer neither waits for all that came before it nor holds it up, and two jobs get the same share of the workers
however many tasks each of them has.

P. Goyal, H. M. Vin, H. Cheng, "Start-time fair queueing" (1996), with tasks for packets.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turns:
    """The priority of each task of a pass; called by the scheduler with the task's key."""

    start: float
    """The tag at which the pass begins."""
    slots: int
    """Tasks that the cluster runs at a time: a round."""
    fan_in: int

    def __call__(self, key: Any) -> float:
        """Minus the tag: Dask takes the highest priority first."""
        return -(self.start + self._number(key) / self.slots)

    def _number(self, key: Any) -> int:
        """The span that a task reads, or the first one below a merge: ready merges come before further reads."""
        match key:
            case (str(), int(number)):
                return number
            case (str(), int(level), int(number)):
                return number * int(self.fan_in ** (level + 1))
        return 0  # what all tasks of a pass share

    def end(self, spans: int) -> float:
        """The tag at which the pass is over."""
        return self.start + spans / self.slots


def served_now(dask_scheduler: Any = None) -> float:
    """On the scheduler: the smallest tag of the tasks that run, 0 when none does."""
    tags = [
        task.priority[0]  # Dask keeps a priority with its sign changed
        for worker in dask_scheduler.workers.values()
        for task in worker.processing
        if task.priority is not None
    ]
    return min(tags, default=0.0)
