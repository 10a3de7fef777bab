"""A Docker engine: the one that runs, or one of our own; and images, also where no registry can be reached."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = "tallgrass-test-base"
"""An image that is made here: Debian, this Python, and the packages that everything here is built from."""
SYSTEM = ("libc.so", "libm.so", "ld-linux", "libpthread", "libdl", "librt", "linux-vdso")
"""Libraries that a Debian of the same release has anyway."""


def run(*command: object, **options) -> str:
    """What a command prints; an error with all that it said when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def with_commands(folder: Path) -> None:
    """A .venv that `make` takes for one, whose commands are those that run this."""
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, called in {"python": "", "tallgrass": "-m workers.cli"}.items():
        (commands / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {called} "$@"\n')
        (commands / name).chmod(0o755)
    (folder / ".venv" / "installed").touch()


def needed(*programs: str) -> None:
    """Skip with a reason where something is missing."""
    if os.getuid() != 0:
        pytest.skip("processes of containers are killed from outside: only root may")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian: apt-get install docker.io docker-compose debootstrap)")


def compose_command() -> list[str]:
    """Compose, of either generation."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    needed("docker-compose")
    return ["docker-compose"]


@contextmanager
def engine(folder: Path) -> Iterator[bool]:
    """`docker` works: with the engine that runs, or with one that keeps everything in this folder and ends with it.

    True when it is ours: then builds have no network.
    """
    if _answers():
        yield False
        return
    needed("dockerd")
    place = f"unix://{folder}/docker.sock"
    paths = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    network = ["--iptables=false", "--bridge=none", "--ip-forward=false"]  # leaves this machine's network as it is
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["dockerd", "-H", place, *paths, *network], stdout=log, stderr=log)
    before, os.environ["DOCKER_HOST"] = os.environ.get("DOCKER_HOST"), place
    try:
        _wait_until_it_answers(process, folder / "log")
        yield True
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _clean(folder)
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before


def _answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True, timeout=60).returncode == 0


def _wait_until_it_answers(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while not _answers():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def _clean(folder: Path) -> None:
    """What an engine that has ended leaves mounted."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def pulled(image: str) -> bool:
    """Whether there is such an image, here or in a registry."""
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0:
        return True
    return subprocess.run(["docker", "pull", "-q", image], capture_output=True, timeout=600).returncode == 0


def make_base(folder: Path) -> str:
    """The image OURS, made of what this machine has; pip finds everything in it, and asks no network."""
    needed("debootstrap")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID", "") != "debian" or sys.base_prefix == "/usr":
        pytest.skip("no Docker engine runs, and images are made here on Debian alone, of a Python of their own")
    root = folder / "root"
    run("debootstrap", "--variant=minbase", "--include=postgresql", release["VERSION_CODENAME"].strip('"'), root)
    _copy_python(root / "usr" / "local")
    wheels = root / "opt" / "wheels"
    run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels, "--constraint", "requirements.lock",
        "hatchling", ".[tls,postgres]", "moto[server]", cwd=ROOT)  # fmt: skip
    (root / "etc" / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /opt/wheels\n")
    run("chroot", root, "ldconfig")
    run("sh", "-c", f"tar -C {root} -c . | docker import - {OURS}")
    shutil.rmtree(root)
    return OURS


def _copy_python(place: Path) -> None:
    """The Python that runs this, with the libraries that it was built with."""
    unwanted = shutil.ignore_patterns("test", "idlelib", "tkinter", "_tkinter*", "turtledemo", "__pycache__", "*.a")
    shutil.copytree(sys.base_prefix, place, symlinks=True, dirs_exist_ok=True, ignore=unwanted)
    parts = [place / "bin" / "python3", *place.glob("lib/python3*/lib-dynload/*.so")]
    lines = [line.split() for part in parts for line in run("ldd", part).splitlines()]
    found = {Path(words[2]) for words in lines if "=>" in words and words[2].startswith("/")}
    for library in sorted(found):
        if not library.name.startswith(SYSTEM) and not library.is_relative_to(place):
            shutil.copy(library, place / "lib" / library.name)
