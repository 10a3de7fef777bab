"""A cluster's process of its own, for an agent: it lives until its standard input is closed, or somebody says SIGTERM.

The agent writes the cluster's model as one line of JSON; the answer is one line of JSON: the scheduler's address and
the dashboard's, or an error.  Each further line is what the dashboard's page of jobs is to show.
"""

import functools
import json
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from pipelines.errors import TallgrassError
from workers.processes import LAST_SECONDS, NICE

HERE = ("local", "ssh", "jobqueue")
"""Kinds of cluster whose scheduler runs in this process."""

AWAY_SECONDS = 3.0
"""A scheduler that has not been there for so long is gone."""


def main() -> None:
    """Start the cluster, or connect to it; say where it is; show what the agent says."""
    from workers.clusters import Cluster, dashboard, dashboard_link, open_cluster, promised, reached_by, resources

    os.nice(NICE)  # workers inherit it
    signal.signal(signal.SIGTERM, _stop)
    model: Any = TypeAdapter(Cluster).validate_json(sys.stdin.readline())
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_hear, args=(lines,), daemon=True).start()
    dashboard.before.append(_register)
    try:
        with open_cluster(model) as client:
            assert client.scheduler is not None
            jobs_page = model.kind in HERE or _has_page(client)
            threading.Thread(target=_watch, args=(client, model.kind), daemon=True).start()
            if model.kind in HERE:
                threading.Thread(target=_tidy_up, args=(client,), daemon=True).start()
            offered = asdict(promised(model) or resources(client))
            reached = reached_by(model, client).model_dump()
            _say({
                "reached": reached, "dashboard": dashboard_link(client), "jobs_page": jobs_page, "resources": offered
            })  # fmt: skip
            while line := lines.get():
                if jobs_page:
                    _show(client, json.loads(line))
    except TallgrassError as error:
        _say({"error": str(error)})
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _hear(lines: "queue.Queue[str]") -> None:
    """What the agent says; its end is ours, also while the cluster starts, which may take hours in a batch system."""
    for line in sys.stdin:
        lines.put(line)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what was started has to be ended
    raise KeyboardInterrupt


def _watch(client: Any, kind: str) -> None:
    """End this process when the scheduler is gone: the agent then gives it no jobs until it is back."""
    away = 0.0
    while away < AWAY_SECONDS:
        time.sleep(0.5)
        away = 0.0 if client.status == "running" else away + 0.5
    _say({"error": f"The scheduler at {client.scheduler.address} has gone away. Jobs wait until it is back."})
    if kind == "gateway":  # it keeps a cluster that nobody gives back
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(LAST_SECONDS)
    os._exit(1)


def _tidy_up(client: Any) -> None:
    """Let the scheduler stay as small as it began."""
    from workers.clusters.tidy import FORGET_AFTER, tidy

    while True:
        time.sleep(FORGET_AFTER)
        with suppress(Exception):
            client.run_on_scheduler(tidy)


def _register() -> None:
    from workers.dashboard import register

    register()


def _has_page(client: Any) -> bool:
    """Whether a scheduler that runs elsewhere was started with our page."""
    try:
        return bool(client.run_on_scheduler(_preloaded))
    except Exception:  # noqa: BLE001  # it has no Tallgrass at all, which it needs for nothing else
        return False


def _preloaded() -> bool:
    return "workers.clusters.preload" in sys.modules


def _show(client: Any, board: dict[str, Any]) -> None:
    from workers.dashboard import show

    with suppress(Exception):  # a page that is a second old is no failure of the cluster
        client.run_on_scheduler(functools.partial(show, board))


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201  # this is the protocol


if __name__ == "__main__":
    main()
