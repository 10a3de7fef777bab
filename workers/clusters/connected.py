"""One machine that is reached by SSH: connected to, its workers started, and all of that again whenever it ends."""

import asyncio
import json
import shlex
import sys
from contextlib import suppress
from typing import Any

import asyncssh
from distributed.deploy.spec import ProcessInterface

from workers.clusters.ssh import Ssh

BACK_OFF = (1.0, 60.0)
"""Seconds before a machine that failed is tried again: at first, and at most."""

TASK = "workers.clusters.joiner"
"""What runs on each machine."""


class Machine(ProcessInterface):
    """What Dask takes for one worker: all the workers of a machine."""

    def __init__(self, scheduler: str, name: str, model: Ssh, task: dict[str, Any]) -> None:
        super().__init__()
        self.scheduler, self.name, self.model, self.task = scheduler, name, model, dict(task)
        self.reached = self.joined = False
        self.error = ""

    @property
    def trouble(self) -> str:
        """Why its workers are not there, or not yet."""
        if self.error:
            return self.error
        if self.reached:
            return f"its workers do not join yet. They have to be able to connect to {self.task['scheduler']}."
        return "SSH has no answer yet. Check that it is up, and the firewalls on the way."

    async def start(self) -> None:
        self._life = asyncio.create_task(self._live())
        await super().start()

    async def close(self) -> None:
        self._life.cancel()
        with suppress(asyncio.CancelledError):
            await self._life
        await super().close()

    async def _live(self) -> None:
        pause = BACK_OFF[0]
        while True:
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001  # of asyncssh, of the network, of what answers there
                self.error = _why(error)
            if self.joined:
                pause = BACK_OFF[0]
            self.reached = self.joined = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACK_OFF[1])

    async def _work(self) -> None:
        """Start the workers of this machine, and wait for their end."""
        options = {} if self.model.config is None else {"config": self.model.config}
        async with asyncssh.connect(self.name, keepalive_interval=15, **options) as connection:
            self.reached = True
            self.task |= {"scheduler": self._address(connection.get_extra_info("sockname")), "name": self.name}
            async with connection.create_process(f"{self._python()} -P -m {TASK}", encoding="utf-8") as process:
                process.stdin.write(json.dumps(self.task) + "\n")
                await self._hear(process)

    def _python(self) -> str:
        """For its shell, which knows where its home is."""
        python = self.model.python or sys.executable
        return f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)

    def _address(self, ours: tuple[Any, ...] | None) -> str:
        """Where this machine finds the scheduler: by the address that it sees of us, unless an interface is named.

        A connection that another command makes (ProxyCommand) has no address, and Dask has chosen one.
        """
        if self.model.interface is not None or ours is None:
            return self.scheduler
        host = f"[{ours[0]}]" if ":" in ours[0] else ours[0]
        return f"tls://{host}:{self.scheduler.rpartition(':')[2]}"

    async def _hear(self, process: Any) -> None:
        """What it says, line by line; the last lines of stderr tell why it ended without a word."""
        errors = asyncio.create_task(process.stderr.read())
        async for line in process.stdout:
            if line.startswith("{"):  # a shell may greet us first
                said = json.loads(line)
                self.joined, self.error = "joined" in said, said.get("error", "")
        if not self.error:
            last = (await errors).strip().rpartition("\n")[2]
            self.error = f"its workers ended ({last or 'no reason was given'})."


def _why(error: Exception) -> str:
    """A letter on what SSH could not do."""
    match error:
        case asyncssh.PermissionDenied():
            return "SSH refuses us. Let `ssh HOST` work without a password: a key, and its line in ~/.ssh/config."
        case asyncssh.HostKeyNotVerifiable():
            return "SSH does not know its key. Connect once by hand with `ssh HOST`, and accept the key."
        case TimeoutError() | OSError():
            return f"SSH cannot connect ({error.strerror or type(error).__name__}). Check its name, and that it is up."
        case _:
            return f"SSH failed: {error or type(error).__name__}."
