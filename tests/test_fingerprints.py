"""What tells whether an input is what it was: the size and time of its chunks, or what they hold."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import LeastSquares, Pseudoinverse, run, verify
from pipelines.errors import BadData, InputChanged, PlanRefused
from pipelines.jobs import Apply
from pipelines.plan import make_plan
from pipelines.progress import PassFinished
from pipelines.storage.arrays import open_store
from pipelines.storage.reader import Reader
from tests.conftest import stored
from tests.test_resume import KINDS, N, data, interrupted, job, once

__all__ = ["data"]

FORMS = {
    "plain": {"compressors": None},
    "crc32c": {"compressors": [Crc32cCodec()]},
    "zstd": {"compressors": [ZstdCodec()]},
    "shards": {"compressors": None, "shards": (20, 3)},
    "v2": {"compressors": None, "zarr_format": 2},
}
WHERE = {"first": 0, "middle": 0.5, "last": -1, "fourth from the end": -4, "fifth from the end": -5}


def chunk_of(url, number=1):
    """One file that holds numbers."""
    return sorted(file for file in Path(url).rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr")))[
        number
    ]


def rewritten(file, raw):
    """The file holds this now, and its time is what it was, as after a bad disk or rsync --times."""
    before = file.stat()
    file.write_bytes(raw)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def rot(file, where=0.5):
    """One bit flips."""
    raw = bytearray(file.read_bytes())
    raw[int(where * len(raw)) if isinstance(where, float) else where] ^= 4
    rewritten(file, bytes(raw))


def seen(url, *, content):
    """What tells all of an array from others."""
    found = Reader(url, fill_missing=False)
    whole = slice(0, found.shape[0]), slice(0, found.shape[1])
    return found.identity(*whole, within=whole, content=content)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("form", FORMS)
def test_content_tells_of_any_bit_and_size_and_time_of_none(save, form, where):
    url = save("A", np.random.default_rng(1).standard_normal((60, 3)), (10, 3), **FORMS[form])
    before = seen(url, content=True), seen(url, content=False)
    rot(chunk_of(url), WHERE[where])
    assert seen(url, content=True) != before[0]
    assert seen(url, content=False) == before[1]


@pytest.mark.parametrize("form", FORMS)
def test_content_tells_of_other_numbers_that_were_rightly_written(save, form):
    """A CRC-32C over a chunk and its own CRC-32C would be the same for all chunks."""
    A = np.random.default_rng(1).standard_normal((60, 3))
    url, other = save("A", A, (10, 3), **FORMS[form]), save("other", 2 * A, (10, 3), **FORMS[form])
    before = seen(url, content=True)
    chunk_of(url).write_bytes(chunk_of(other).read_bytes())
    assert seen(url, content=True) != before


def test_content_tells_of_chunks_that_change_places_and_of_missing_ones(problem):
    url = problem().matrix
    before, (one, two) = seen(url, content=True), (chunk_of(url, 1), chunk_of(url, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert seen(url, content=True) != before
    one.write_bytes(first)
    two.write_bytes(second)
    assert seen(url, content=True) == before
    one.unlink()
    assert seen(url, content=True) != before


def test_contents_of_neighbouring_regions_add_up(save):
    url = save("A", np.arange(200.0).reshape(25, 8), (4, 5))
    reader, window = Reader(url, fill_missing=False), (slice(2, 21), slice(1, 7))
    parts = [
        reader.identity(slice(*part), window[1], within=window, content=True) for part in ((2, 5), (5, 16), (16, 21))
    ]
    assert sum(parts) % 2**128 == reader.identity(*window, within=window, content=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_job_takes_each_chunk_once_and_finds_the_same_content(data, tmp_path, kind):
    stored(data / "e", np.random.default_rng(5).standard_normal(N), (N,))
    made = once(job(data, kind, tmp_path / "x", fingerprint="content"))
    name = "wide" if "wide" in kind else "A"
    shutil.copytree(data / name, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*"):
        os.utime(file, ns=(1, 1))
    assert int(made.summary["input"]["matrix"]["fingerprint"], 16) == seen(f"{tmp_path}/copy", content=True)


@pytest.mark.parametrize("name", ["matrix", "rhs", "weights"])
def test_an_input_that_goes_bad_between_two_passes_is_found_by_its_content(problem, save, name):
    made = problem(compressors=None)
    fields = made.fields | {"weights": save("w", np.ones(60), (10,))}

    def listener(event):
        if isinstance(event, PassFinished) and event.name == "factor":
            rot(chunk_of(fields[name]), 7)  # of the first number's exponent: nothing that is not finite comes of it

    run(LeastSquares(**fields), listener=listener)  # size and time tell nothing
    with pytest.raises(
        BadData, match=rf"The {name} changed in the store while the job was reading: .* look at the disk"
    ):
        run(LeastSquares(**fields, fingerprint="content"), listener=listener)


@pytest.mark.parametrize("name", ["A", "b", "w"])
def test_an_input_that_is_another_after_an_interrupt_is_found_by_its_content(data, tmp_path, monkeypatch, name):
    what = {"A": "matrix", "b": "rhs", "w": "weights"}[name]
    array, chunks = zarr.open_array(str(data / name))[...], (100, *zarr.open_array(str(data / name)).shape[1:])
    stored(data / name, array, chunks, compressors=[Crc32cCodec()], overwrite=True)
    other = chunk_of(stored(data / "other", 2 * array, chunks, compressors=[Crc32cCodec()]), 3).read_bytes()
    broken = job(data, "least_squares", tmp_path / "x", fingerprint="content")
    interrupted(monkeypatch, broken, 20)
    first = chunk_of(data / name, 3).read_bytes()
    rewritten(chunk_of(data / name, 3), other)
    for _ in range(2):  # as often as one tries
        with pytest.raises(InputChanged, match=rf"The {what} at .*the content of each chunk tells"):
            once(broken)
    assert once(broken, restart=True).summary["resumed_spans"] == 0
    told_by_time = job(data, "least_squares", tmp_path / "y")
    interrupted(monkeypatch, told_by_time, 20)
    rewritten(chunk_of(data / name, 3), first)
    assert once(told_by_time).summary["resumed_spans"] >= 19


def test_a_run_goes_on_with_a_copy_in_the_same_place_when_its_content_is_the_same(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "x", fingerprint="content")
    interrupted(monkeypatch, broken, 20)
    for file in (data / "A").rglob("*"):
        os.utime(file, ns=(1, 1))
    assert once(broken).summary["resumed_spans"] >= 19


@pytest.mark.parametrize("fingerprint", ["stat", "content"])
def test_verify_says_whether_the_input_is_what_it_was(problem, tmp_path, fingerprint):
    made = problem(compressors=None)
    run(LeastSquares(**made.fields, output=f"{tmp_path}/x", fingerprint=fingerprint))
    by_content = fingerprint == "content"
    assert verify(f"{tmp_path}/x").changed == ()
    for file in Path(made.rhs).rglob("*"):
        os.utime(file, ns=(1, 1))
    assert verify(f"{tmp_path}/x").changed == (() if by_content else ("rhs",))
    before = chunk_of(made.matrix).stat().st_mtime_ns
    rot(chunk_of(made.matrix), 8)
    assert chunk_of(made.matrix).stat().st_mtime_ns == before
    assert verify(f"{tmp_path}/x").changed == (("matrix",) if by_content else ("rhs",))
    said = verify(f"{tmp_path}/x", job=LeastSquares(**made.fields))  # of a job that says nothing of fingerprints
    assert said.changed == (("matrix",) if by_content else ("rhs",))


def test_an_operator_knows_its_matrix_as_it_was_factored(problem, tmp_path):
    made = problem(compressors=None)
    fields = {"matrix": made.matrix, "form": "operator", "output": f"{tmp_path}/operator", "fingerprint": "content"}
    run(Pseudoinverse(**fields))
    apply = {"operator": f"{tmp_path}/operator", "compute": "pinv", "rhs": made.rhs}
    for file in Path(made.matrix).rglob("*"):
        os.utime(file, ns=(1, 1))
    np.testing.assert_allclose(run(Apply(**apply, fingerprint="content"))["pinv"], made.x, rtol=1e-10)
    assert run(Apply(**apply)).summary["job"]["fingerprint"] == "content"
    with pytest.raises(PlanRefused, match=r"knows its matrix by `fingerprint: content`, and the job asks for `stat`"):
        run(Apply(**apply, fingerprint="stat"))
    rot(chunk_of(made.matrix), 8)
    with pytest.raises(BadData, match=r"is not what the operator .* was made from"):
        run(Apply(**apply))


def test_content_is_the_same_on_a_disk_and_in_an_object_store(remote, tmp_path):
    for name in ("A", "b"):
        store = open_store(f"{remote.bucket}/data/{name}")
        for key in store.names():
            file = tmp_path / "copy" / name / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(store.read(key))
    there = run(LeastSquares(**remote.fields, fingerprint="content")).summary["input"]
    copies = {"matrix": f"{tmp_path}/copy/A", "rhs": f"{tmp_path}/copy/b"}
    here = run(LeastSquares(**copies, fingerprint="content")).summary["input"]
    assert [here[name]["fingerprint"] for name in copies] == [there[name]["fingerprint"] for name in copies]


def test_the_plan_counts_what_is_read_for_the_content(problem, tmp_path):
    fields = problem().fields
    once = make_plan(LeastSquares(**fields)).bytes
    assert make_plan(LeastSquares(**fields, fingerprint="content")).bytes == 2 * once
    kept = LeastSquares(**fields, fingerprint="content", output=f"{tmp_path}/x")
    assert make_plan(kept).bytes == 3 * once
    assert make_plan(kept.model_copy(update={"checkpoints": False})).bytes == 2 * once
