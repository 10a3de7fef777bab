"""Figures of the service for Prometheus: jobs by state, their waits, what they read."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from workers.queue import Queue


def exposition(queue: Queue) -> str:
    """All figures, in Prometheus' text format; they come from the queue, so they survive a restart."""
    registry = CollectorRegistry()
    registry.register(_Figures(queue))
    return generate_latest(registry).decode()


class _Figures:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """One family for each figure."""
        totals = self.queue.totals()
        states = GaugeMetricFamily("tallgrass_jobs", "Jobs by state.", labels=["state"])
        for state, count in self.queue.counts().items():
            states.add_metric([str(state)], count)
        waits = GaugeMetricFamily(
            "tallgrass_oldest_wait_seconds", "How long the job that waits longest has waited.", totals["oldest_wait"]
        )
        return [
            states,
            waits,
            CounterMetricFamily("tallgrass_submitted", "Jobs that were accepted.", totals["submitted"]),
            CounterMetricFamily("tallgrass_attempts", "Attempts that were begun.", totals["attempts"]),
            CounterMetricFamily("tallgrass_wait_seconds", "Time that jobs waited for an attempt.", totals["waited"]),
            CounterMetricFamily("tallgrass_passes", "Reads of a matrix that were begun.", totals["passes"]),
            CounterMetricFamily("tallgrass_bytes_read", "Decoded bytes that were read.", totals["bytes"]),
        ]
