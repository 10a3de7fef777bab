"""Dask's dashboard, built when somebody first looks at it: importing bokeh takes as long as starting a cluster."""

import asyncio
from importlib import import_module
from typing import Any

from tornado.web import Application, RequestHandler


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
                dashboard.connect(self.scheduler.http_application, self.scheduler.http_server, self.scheduler)
                others.remove(self.application)


class _Handler(RequestHandler):
    def initialize(self, visit: _FirstVisit) -> None:
        self.visit = visit

    async def get(self) -> None:
        await self.visit.build()
        self.redirect(self.request.uri or "/")
