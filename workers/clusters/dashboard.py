"""Dask's dashboard, built when somebody first looks at it: importing bokeh takes as long as starting a cluster."""

import asyncio
from collections.abc import Callable
from graphlib import TopologicalSorter
from importlib import import_module
from typing import Any

from tornado.web import Application, RequestHandler

before: list[Callable[[], None]] = []
"""Called when the dashboard is about to be built: what adds pages to it."""


def attach(scheduler: Any) -> None:
    """The scheduler's HTTP server shows the dashboard from the first visit on."""
    first_visit = _FirstVisit(scheduler)
    scheduler.http_application.add_application(first_visit.application)


class _FirstVisit:
    """Takes every page that the HTTP server does not know, until the dashboard is there."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.lock = asyncio.Lock()
        self.application = Application([(r"/.*", _Handler, {"visit": self})])

    async def build(self) -> None:
        """The dashboard in our place; once, however many ask at the same time."""
        async with self.lock:
            others = self.scheduler.http_application.applications
            if self.application in others:
                loop = asyncio.get_running_loop()
                dashboard = await loop.run_in_executor(None, import_module, "distributed.dashboard.scheduler")
                mend_groups_page()
                for add in before:
                    add()
                dashboard.connect(self.scheduler.http_application, self.scheduler.http_server, self.scheduler)
                others.remove(self.application)


def mend_groups_page() -> None:
    """Let the page "Groups" order its boxes by their dependencies.

    It asks dask.order for that, which in Dask 2026.8 disregards the dependencies that it is given, orders by name,
    and makes the page answer with an error 500 as soon as a merge has its turn.
    """
    import dask.order
    from distributed.dashboard.components.scheduler import TaskGroupGraph

    ask = TaskGroupGraph.update_layout
    if getattr(ask, "mended", False):
        return

    def update_layout(self: Any) -> Any:
        order, dask.order.order = dask.order.order, _by_dependencies
        try:
            return ask(self)
        finally:
            dask.order.order = order

    update_layout.mended = True  # type: ignore[attr-defined]
    TaskGroupGraph.update_layout = update_layout


def _by_dependencies(dsk: dict[str, int], dependencies: dict[str, set[str]]) -> dict[str, int]:
    """Groups in an order in which each comes after those that it needs; the pages draw no others."""
    known = {name: [other for other in dependencies[name] if other in dsk] for name in dsk}
    return {name: place for place, name in enumerate(TopologicalSorter(known).static_order())}


class _Handler(RequestHandler):
    def initialize(self, visit: _FirstVisit) -> None:
        self.visit = visit

    async def get(self) -> None:
        await self.visit.build()
        self.redirect(self.request.uri or "/")
