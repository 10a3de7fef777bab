"""A scheduler with the page of jobs, and one worker, as an administrator starts them."""

import subprocess
import sys
from pathlib import Path

from tests.served import free_port

DASK = str(Path(sys.executable).with_name("dask"))


class Cluster:
    """Processes of Dask in a folder, with the certificates in another one or with none; killed, and started again."""

    def __init__(self, folder: Path, certificates: Path | None = None):
        self.folder, self.certificates = folder, certificates
        self.port, self.http = free_port(), free_port()
        self.address = f"{'tls' if certificates else 'tcp'}://127.0.0.1:{self.port}"
        self.processes = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Scheduler and worker, which find each other in their own time."""
        self.scheduler()
        self.worker()

    def scheduler(self):
        """The scheduler."""
        protocol = ("--protocol", "tls") if self.certificates else ()
        return self.run("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--dashboard-address",
                        f"127.0.0.1:{self.http}", "--preload", "workers.clusters.preload", *protocol)  # fmt: skip

    def worker(self):
        """A worker."""
        return self.run("worker", self.address, "--nthreads", "1", "--memory-limit", "512MiB", "--no-dashboard",
                        "--local-directory", str(self.folder / "spill"))  # fmt: skip

    def run(self, role, *words):
        """A command of Dask, with the certificate of its role."""
        files = {"ca-file": "ca.pem", "cert": f"{role}.pem", "key": f"{role}-key.pem"} if self.certificates else {}
        options = [word for name, file in files.items() for word in (f"--tls-{name}", str(self.certificates / file))]
        with self.log.open("ab") as log:
            command = [DASK, role, *words, *options]
            self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))
        return self.processes[-1]

    @property
    def log(self):
        """What they print."""
        return self.folder / "dask.log"

    def kill(self):
        """End them all."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()
