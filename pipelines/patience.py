"""How long a pass is waited for, and the letter when nothing moves any more.

Dask waits for ever where workers are gone, frozen, paused or cut off, unless its settings say otherwise; those of a
cluster that somebody else runs are not ours.  So the time in which nothing moves is taken here.
"""

import time
from typing import Any

from pipelines.errors import Stalled
from pipelines.failures import ask_scheduler, state_of, workers_now
from pipelines.meter import Meter
from pipelines.units import counted, format_seconds

SILENT_SECONDS = 15.0
"""Workers speak twice a second, and in the largest clusters every few seconds: one that was not heard of for so long
is frozen, or cut off."""
NAMED = 3
"""Workers that a letter names; of more it says how many."""


class Patience:
    """Looks at the workers while a pass goes on, and gives it up when nothing has moved for too long."""

    def __init__(self, client: Any, seconds: float, *, keeps: bool) -> None:
        self.client, self.seconds, self.keeps = client, seconds, keeps
        self.heard: dict[str, tuple[float, float]] = {}
        """Of each worker: when it last spoke by the scheduler's clock, and by ours when we saw that."""

    def look(self, meter: Meter) -> None:
        """Take the workers' state into the meter.

        Raises:
            Stalled: nothing has moved for so long.
        """
        workers = workers_now(self.client)
        if workers is not None:  # the scheduler is there, and not busy
            meter.workers = len(workers)
            meter.memory_bytes = max((int(worker["metrics"].get("memory", 0)) for worker in workers), default=0)
            self._hear(workers)
        still = time.monotonic() - meter.moved
        if still > self.seconds and (workers != [] or still > (ask_scheduler(self.client, patience_of) or 0.0)):
            raise Stalled(self._letter(meter.name, still, workers))

    def _hear(self, workers: list[dict[str, Any]]) -> None:
        now, before = time.monotonic(), self.heard
        told = {worker["id"]: float(worker["last_seen"]) for worker in workers}
        self.heard = {
            name: before[name] if before.get(name, (0, 0))[0] == at else (at, now) for name, at in told.items()
        }

    def _letter(self, name: str, still: float, workers: list[dict[str, Any]] | None) -> str:
        now, long = time.monotonic(), min(SILENT_SECONDS, still / 2)
        silence = {_called(worker): now - self.heard[worker["id"]][1] for worker in workers or []}
        silent = {name: seconds for name, seconds in silence.items() if seconds > long}
        found = state_of(workers) + (f"; {_not_heard_of(silent)}" if silent else "")
        goes_on = ": it goes on from what is kept" if self.keeps else ""
        return (
            f"Nothing has moved in the pass {name} for {format_seconds(still)}: {found}. {_advice(workers, silent)} "
            f"and run the job again{goes_on}."
        )


def _called(worker: dict[str, Any]) -> str:
    """The name of a worker and its machine; where nobody named it, that is its address."""
    name = str(worker["name"])
    return name if "://" in name else f"{name} on {worker['host']}"


def _not_heard_of(silent: dict[str, float]) -> str:
    named = ", ".join(f"{name} for {format_seconds(seconds)}" for name, seconds in sorted(silent.items())[:NAMED])
    more = f", and {len(silent) - NAMED} others" if len(silent) > NAMED else ""
    return f"{counted(len(silent), 'worker')} not heard of: {named}{more}"


def _advice(workers: list[dict[str, Any]] | None, silent: dict[str, float]) -> str:
    if workers is None:
        return "Look at the scheduler's process and the network to it, start it again if it is stuck,"
    if not workers:
        return "Start workers"
    if silent:
        return "End what is frozen (`ps` shows a T), or mend the network to it,"
    if any(worker["status"] == "paused" for worker in workers):
        return "Free memory and disk on the machines of the paused workers, or start workers with more,"
    return "If single reads take longer than that, raise `no_progress_timeout` in the job file; look at the store"


def patience_of(dask_scheduler: Any = None) -> float:
    """On the scheduler: seconds for which it lets tasks wait for the first worker, in a batch system's queue say."""
    return float(dask_scheduler.no_workers_timeout or 0.0)
