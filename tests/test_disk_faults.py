"""Disks that are full, read-only or not ours any more, as runs meet them: a letter, nothing half there, and the same
command goes on once that is mended, with the same bits."""

import json
import re
import subprocess
import threading
import time

import numpy as np
import pytest

from pipelines import open_result
from pipelines.errors import PlanRefused, RunFailed
from pipelines.progress import Note, PassStarted
from pipelines.storage import Scratch, checkpoints_of
from tests.conftest import stored, written
from tests.disks import Disk, disk, fill, small_disk, unmounted
from tests.test_resume import FINE, arrays, hidden, interrupted, job, once
from workers.clusters import Local, open_cluster

__all__ = ["disk"]

M, N, CHUNK = 4000, 8, 100
WRITE = {"pseudoinverse": "pinv", "qr": "Q", "svd": "U"}
"""Kinds of job that write as they read, in tests.test_resume.job's words, and the array that they write."""


@pytest.fixture
def data(tmp_path):
    """A matrix in chunks that are decoded whole: a span for each."""
    A = np.random.default_rng(3).standard_normal((M, N))
    stored(tmp_path / "data" / "A", A, (CHUNK, N), compressors="auto")
    return tmp_path / "data"


def when_it_writes(folder, name, then):
    """A listener that does something when the pass that writes an array begins."""

    def listener(event):
        if isinstance(event, PassStarted) and (folder / ".x.partial-kept" / name).exists():
            then()

    return listener


def goes_on(data, kind, folder, spans=1):
    """The same job ends with the bits of one that nothing happened to, and leaves nothing beside its result."""
    result = once(job(data, kind, folder / "x"))
    assert result.summary["resumed_spans"] >= spans
    once(job(data, kind, data.parent / "quiet"))
    assert arrays(folder / "x") == arrays(data.parent / "quiet")
    assert hidden(folder) == []


# The output while spans write


@pytest.mark.parametrize("room", [3000, 100_000])
@pytest.mark.parametrize("kind", WRITE)
def test_a_disk_that_fills_up_in_the_middle_of_a_chunk(data, tmp_path, kind, room):
    with small_disk(tmp_path / "disk", "size=8m") as folder:
        listener = when_it_writes(folder, WRITE[kind], lambda: fill(folder, room))
        with pytest.raises(RunFailed) as said:
            once(job(data, kind, folder / "x"), listener=listener)
        assert f"No space is left for the output {folder}/x: " in str(said.value)
        assert f"are free at {folder}/.x.partial-kept/{WRITE[kind]}, and up to 6.2 KiB were to be" in str(said.value)
        assert "Free some space there and run the job again" in str(said.value)
        assert not (folder / "x").exists()
        assert list(folder.rglob("*.partial")) == []
        (folder / "other").unlink()
        goes_on(data, kind, folder, M // CHUNK)


def test_the_command_says_it_in_one_letter_and_goes_on(data, tmp_path, command):
    fields = {"kind": "qr", "form": "explicit", "matrix": f"{data}/A", "output": "disk/x", "method": FINE}
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, processes: 2, memory: 400 MiB, dashboard: false}")
    words = ["run", "job.yaml", "--cluster", str(cluster)]
    with small_disk(tmp_path / "disk", "size=8m") as folder:
        begun = folder / ".x.partial-kept" / "Q" / "c"
        filler = threading.Thread(target=lambda: (_wait(begun.exists), fill(folder, 10_000)))
        filler.start()
        done = command(*words, job=fields)
        filler.join()
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert f"No space is left for the output {folder}/x: " in done.stderr
        assert "the same command goes on from there" in done.stderr
        assert done.stdout == ""
        assert not (folder / "x").exists()
        (folder / "other").unlink()
        again = command(*words, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["resumed_spans"] >= M // CHUNK
        once(job(data, "qr", tmp_path / "quiet"))
        assert arrays(folder / "x") == arrays(tmp_path / "quiet")
        assert hidden(folder) == []


def _wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


def test_a_disk_without_room_for_another_file_says_so_and_not_how_many_bytes_are_free(data, tmp_path):
    with small_disk(tmp_path / "disk", "size=64m,nr_inodes=150") as folder:
        with pytest.raises(
            RunFailed, match=rf"No space is left .*/x: [\d.]+ MiB and \d more files are free at {folder}/.x"
        ):
            once(job(data, "qr", folder / "x"))
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", folder], check=True)
        goes_on(data, "qr", folder, M // CHUNK)


def test_a_disk_without_room_for_a_folder_is_refused_and_keeps_nothing_of_ours(data, tmp_path):
    with small_disk(tmp_path / "disk", "size=64m,nr_inodes=2") as folder:
        with pytest.raises(PlanRefused, match=r"No space is left .*/x: 64.0 MiB and 1 more file are free at"):
            once(job(data, "qr", folder / "x"))
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", WRITE)
def test_a_disk_that_becomes_read_only(data, disk, kind):
    listener = when_it_writes(disk.folder, WRITE[kind], disk.becomes_read_only)
    with pytest.raises(
        RunFailed, match=f"The output {disk.folder}/x cannot be written: Read-only file system. .*or make"
    ):
        once(job(data, kind, disk.folder / "x"), listener=listener)
    with pytest.raises(PlanRefused, match=r"cannot be written: Read-only file system"):
        once(job(data, kind, disk.folder / "x"))
    assert not (disk.folder / "x").exists()
    disk.repaired()
    (disk.folder / "lost+found").rmdir()
    goes_on(data, kind, disk.folder, 0)  # what was not on the disk yet is gone, and the run need not know


@pytest.mark.parametrize("kind", WRITE)
def test_a_disk_that_takes_what_is_written_and_loses_it(data, tmp_path, kind):
    """What a file system holds in memory only is found to be lost when it is flushed, and not a year later."""
    with small_disk(tmp_path / "below", "size=16m") as below:
        thin = Disk(below)
        try:
            listener = when_it_writes(thin.folder, WRITE[kind], lambda: fill(below))
            letter = f"No space is left for the output {thin.folder}/x: .* are free at .*/.x.partial-kept/{WRITE[kind]}"
            with pytest.raises(RunFailed, match=letter):  # said by the task, before a checkpoint vouches for its chunk
                once(job(data, kind, thin.folder / "x"), listener=listener)
            assert not (thin.folder / "x").exists()
            (below / "other").unlink()
            thin.repaired()
            (thin.folder / "lost+found").rmdir()
            goes_on(data, kind, thin.folder, 0)
        finally:
            unmounted(thin.folder)


@pytest.mark.parametrize("where", ["array", "beside the result"])
def test_a_folder_in_which_one_may_not_write_any_more(data, disk, where):
    folder, locked = disk.folder, disk.folder if where != "array" else disk.folder / ".x.partial-kept" / "Q"
    listener = when_it_writes(folder, "Q", lambda: subprocess.run(["chattr", "+i", locked], check=True))
    with pytest.raises(RunFailed, match=f"The output {folder}/x cannot be written: permission denied for {folder}/"):
        once(job(data, "qr", folder / "x"), listener=listener)
    assert not (folder / "x").exists()
    subprocess.run(["chattr", "-i", locked], check=True)
    goes_on(data, "qr", folder, M // CHUNK)


# What is kept for later


@pytest.mark.parametrize("options", ["size=16k", "size=64k,ro", "size=16k,nr_inodes=4"])
def test_a_run_whose_checkpoints_have_no_room_goes_on_and_says_what_it_does_not_keep(data, tmp_path, options):
    heard = []
    with small_disk(tmp_path / ".x.checkpoints", options):
        once(job(data, "qr", tmp_path / "x"), listener=heard.append)
    once(job(data, "qr", tmp_path / "quiet"))
    assert arrays(tmp_path / "x") == arrays(tmp_path / "quiet")
    (note,) = [event.text for event in heard if isinstance(event, Note)]
    why = "Read-only file system" if "ro" in options.split(",") else "No space left on device"
    assert note == (
        f"factor: what is done cannot be kept at {tmp_path}/.x.checkpoints ({why}), so an interrupted run will start "
        "again; choose an output beside which all workers can write, to have it kept"
    )


def test_what_checkpoints_had_room_for_is_used(data, tmp_path, monkeypatch):
    with small_disk(tmp_path / ".x.checkpoints", "size=64k"):
        broken = job(data, "qr", tmp_path / "x")
        interrupted(monkeypatch, broken, 30)
        kept = len(Scratch(checkpoints_of(broken.output)).names())
        assert 0 < kept < 30
        assert once(broken).summary["resumed_spans"] == kept
    once(job(data, "qr", tmp_path / "quiet"))
    assert arrays(tmp_path / "x") == arrays(tmp_path / "quiet")


# The scratch folder of workers


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("size=1m", 0, ""),  # nothing is written there, since states are small
        ("size=1m,nr_inodes=3", 1, "No space left on device"),
        ("size=1m,nr_inodes=10", 1, "No space left on device"),
        ("size=1m,ro", 1, "Read-only file system"),
    ],
)
def test_a_scratch_folder_in_which_nothing_can_be_written(problem, tmp_path, command, options, code, says):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, processes: 2, memory: 400 MiB, dashboard: false, scratch: disk}")
    written(tmp_path, problem().fields | {"output": "x"})
    with small_disk(tmp_path / "disk", options) as folder:
        if options == "size=1m":
            fill(folder)
        done = command("run", "job.yaml", "--quiet", "--cluster", str(cluster))
        assert [entry.name for entry in folder.iterdir() if entry.name != "other"] == []
    assert done.returncode == code, done.stderr
    letter = rf"No scratch folder in (/.*/)?disk: {says}. (Remove files there, or n|N)ame another one as `scratch`.\n"
    assert re.fullmatch(letter, done.stderr) if says else done.stderr == ""
    assert hidden(tmp_path) == []


def test_what_cannot_be_spilled_stays_in_memory(tmp_path):
    with small_disk(tmp_path / "disk", "size=20m") as folder:
        model = Local(processes=1, memory="512 MiB", dashboard=False, scratch=str(folder))
        with open_cluster(model) as client:
            held = client.map(lambda value: np.full(2_000_000, value), range(20))  # 320 MB of 307 that are the target
            assert client.gather(client.map(lambda array: float(array[-1]), held)) == list(range(20))


# The service


@pytest.mark.slow
def test_a_job_of_a_server_whose_disk_is_full_fails_with_the_letter_and_can_be_tried_again(data, tmp_path):
    from tests.served import Served
    from workers import Client
    from workers.lifecycle import State

    fields = {"kind": "qr", "form": "explicit", "matrix": f"{data}/A", "method": FINE}
    with small_disk(tmp_path / "disk", "size=8m") as folder, Served(tmp_path) as served, Client(served.url) as client:
        begun = folder / ".x.partial-kept" / "Q" / "c"
        filler = threading.Thread(target=lambda: (_wait(begun.exists), fill(folder, 10_000)))
        filler.start()
        failed = client.wait(client.submit(fields | {"output": f"{folder}/x"}).id)
        filler.join()
        assert failed.state is State.FAILED
        assert failed.error is not None
        assert f"No space is left for the output {folder}/x: " in str(failed.error)
        (folder / "other").unlink()
        assert client.wait(client.retry(failed.id).id).state is State.SUCCEEDED
        assert open_result(f"{folder}/x").summary["resumed_spans"] >= M // CHUNK
        once(job(data, "qr", tmp_path / "quiet"))
        assert arrays(folder / "x") == arrays(tmp_path / "quiet")
        assert "Traceback" not in served.said()
