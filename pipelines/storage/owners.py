"""Whose a mark is, in a store without locks: a process that nobody mistakes for another one, and whether it lives."""

import hashlib
import os
import platform
import re
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


def this_process() -> str:
    """This process, by number, start, machine, and the space in which its number means something."""
    return f"process {os.getpid()}.{_started(os.getpid())} of {platform.node()}.{_space()}"


def is_dead(owner: str) -> bool:
    """True for a process of this very machine, and space of numbers, that is not there any more; else nobody knows."""
    found = re.fullmatch(r"process (\d+)\.(\d*) of (.*)", owner)
    if found is None or found[3] != f"{platform.node()}.{_space()}":
        return False
    return _started(int(found[1])) != found[2]


def _started(process: int) -> str:
    """When a process started, in ticks since the machine did; nothing for one that is not there."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


@lru_cache
def _space() -> str:
    """The start of this machine, and its space of process numbers; unlike any other where that cannot be told."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        text = uuid.uuid4().hex
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
