"""File systems of their own for tests: small ones, ones that fail, and what fills them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mounted(folder: Path, kind: str, options: str, source: str = "none") -> None:
    """A file system appears at a folder; the test is skipped where that is not allowed."""
    done = subprocess.run(["mount", "-t", kind, "-o", options, source, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"file systems can be mounted by root only: {done.stderr.strip()}")


def unmounted(folder: Path) -> None:
    """It is gone, whoever still uses it."""
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory: size=2m, nr_inodes=60, ro."""
    folder.mkdir(exist_ok=True)
    mounted(folder, "tmpfs", options)
    try:
        yield folder
    finally:
        unmounted(folder)


class Disk:
    """An ext4 file system in a file, which can be made to fail as disks do."""

    def __init__(self, folder: Path) -> None:
        self.image, self.folder = folder / "image", folder / "disk"
        self.folder.mkdir()
        self.image.touch()
        os.truncate(self.image, 24 * 2**20)
        make = ["mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "^has_journal", self.image]
        if not all(map(shutil.which, ("mkfs.ext4", "e2fsck", "chattr", "filefrag"))):
            pytest.skip("the tools of ext4 are not installed (e2fsprogs)")
        subprocess.run(make, check=True)
        self.mount()

    def mount(self) -> None:
        """It is there, and becomes read-only at the first error."""
        mounted(self.folder, "ext4", "loop,errors=remount-ro", str(self.image))

    def unmount(self) -> None:
        """It is on the image alone, and no part of it in memory."""
        subprocess.run(["umount", self.folder], check=True)

    def becomes_read_only(self) -> None:
        """The kernel finds an error and takes no writes any more."""
        found = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {self.folder} " in line)
        trigger = Path("/sys/fs/ext4") / Path(found.split()[0]).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel makes no errors of ext4 for tests")
        trigger.write_text("1")

    def repaired(self) -> None:
        """As somebody would who looks after it."""
        self.unmount()
        assert subprocess.run(["e2fsck", "-fy", self.image], capture_output=True).returncode in (0, 1)
        self.mount()

    def cannot_read(self, file: Path) -> None:
        """The first sector of a file is lost (EIO), and of what lies behind it all that nobody has read yet."""
        self.unmount()
        self.mount()
        where = re.search(r"^\s*0:\s+0\.\.\s*\d+:\s+(\d+)\.\.", _extents(file), re.MULTILINE)
        assert where is not None
        for other in sorted(self.folder.rglob("*")):
            if other.is_file() and other != file:
                other.read_bytes()
            else:
                other.stat()
        with self.image.open("rb") as image:
            image.seek(int(where[1]) * 1024)
            self._lost = image.read()
        os.truncate(self.image, int(where[1]) * 1024)

    def readable_again(self) -> None:
        """What was lost is there again."""
        with self.image.open("ab") as image:
            image.write(self._lost)


def _extents(file: Path) -> str:
    return subprocess.run(["filefrag", "-v", "-b1024", file], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """An ext4 file system of 24 MB."""
    made = Disk(tmp_path)
    yield made
    subprocess.run(["umount", "-l", made.folder], check=False, capture_output=True)


def free_bytes(folder: Path) -> int:
    """What can be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(folder: Path, leave: int = 0) -> None:
    """Another program takes what is free there, but for `leave` bytes."""
    with (folder / "other").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - leave)
