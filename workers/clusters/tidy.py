"""For a scheduler that runs for months: what Dask keeps of each job for ever, 100 KB or so, is let go."""

import time
from typing import Any

FORGET_AFTER = 60.0
"""Seconds after which nothing more is heard of tasks that are done; workers tell what they measured every few."""


def tidy(dask_scheduler: Any) -> None:
    """Forget the names of tasks that are gone, and the spans that they made up."""
    prefixes = dask_scheduler.task_prefixes
    for name in [name for name, prefix in prefixes.items() if not prefix.groups]:
        del prefixes[name]
    topics = dask_scheduler._broker._topics  # noqa: SLF001  # emptied when a client goes, and kept
    for name in [name for name, topic in topics.items() if not topic.events and not topic.subscribers]:
        del topics[name]
    if (spans := dask_scheduler.extensions.get("spans")) is not None:
        _tidy_spans(spans, dask_scheduler.task_groups)


def _tidy_spans(spans: Any, groups: Any) -> None:
    """Forget spans that are over: a task that is known may run again, and Dask looks for its span then."""
    _hear_of_known_ones_only(spans)
    before = time.time() - FORGET_AFTER
    over = {
        span
        for span in spans.spans.values()
        if span.done and span.stop < before and not any(group.name in groups for group in span.traverse_groups())
    }
    spans.root_spans[:] = [span for span in spans.root_spans if span not in over]
    for span in over:
        del spans.spans[span.id]
    for found in (spans.spans_search_by_name, spans.spans_search_by_tag):
        for name, known in list(found.items()):
            known[:] = [span for span in known if span not in over]
            if not known:
                del found[name]


def _hear_of_known_ones_only(spans: Any) -> None:
    """A worker ends for good when it tells of a span that is not known, as of a task that was cancelled long ago."""
    hear = type(spans).heartbeat
    spans.heartbeat = lambda worker, told: hear(
        spans, worker, {about: value for about, value in told.items() if about[1] in spans.spans}
    )
