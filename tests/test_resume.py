"""Interrupted runs: the next one does only the rest, with the same bits, and never uses what it must not."""

import hashlib
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import zarr

from pipelines import engine, run
from pipelines.checkpoints import FORM, Checkpoints, decoded, encoded, told
from pipelines.errors import BadData, InputChanged, PlanRefused, RunFailed
from pipelines.kernels.sweep import Triangle
from pipelines.load import job_of
from pipelines.matrix import Tally
from pipelines.passes.output import Rows, Target
from pipelines.passes.project import Projected
from pipelines.plan import Resources, plan_of
from pipelines.progress import Note
from pipelines.storage import Scratch, Staging, Writer, checkpoints_of, clean, folders, leftovers, open_array, sweep
from pipelines.storage.arrays import open_store
from pipelines.storage.owners import _started, this_process
from tests.conftest import environment, stored, written
from tests.served import wait_for

ONE = Resources(1, 1, 2**33)
"""Spans are done one after the other, so that a test knows which."""
M, N, CHUNK = 3000, 6, 100
FINE = {"name": "tsqr", "span_seconds": 1e-9}


def once(job, **more):
    """A run in this process."""
    return run(job, resources=ONE, **more)


class Stopped(BaseException):
    """The end of a run, at a moment that a test chooses."""


@pytest.fixture
def data(tmp_path):
    """A matrix with its companions, in chunks that are decoded whole: a span for each."""
    random = np.random.default_rng(3)
    A = random.standard_normal((M, N)) @ np.diag(np.logspace(0, -3, N))
    arrays = {"A": A, "b": random.standard_normal((M, 2)), "w": random.uniform(0.5, 2, M)}
    for name, array in arrays.items():
        stored(tmp_path / "data" / name, array, (CHUNK, *array.shape[1:]), compressors="auto")
    stored(tmp_path / "data" / "wide", np.ascontiguousarray(A.T), (N, CHUNK), compressors="auto")
    return tmp_path / "data"


KINDS = {
    "least_squares": {"rhs": "b", "weights": "w", "arrays": ["R"]},
    "least_squares of a wide matrix": {"matrix": "wide", "rhs": "e"},
    "pseudoinverse": {"form": "explicit"},
    "pseudoinverse of a wide matrix": {"matrix": "wide", "form": "explicit"},
    "qr": {"form": "explicit"},
    "svd": {"vectors": "both"},
    "pca": {"scores": True},
    "low_rank": {"rank": 3, "method": {"name": "block_krylov", "span_seconds": 1e-9}},
    "low_rank by subspace iteration": {"rank": 3, "method": {"name": "subspace_iteration", "span_seconds": 1e-9}},
}


def job(data, kind, output, **more):
    """A job of a kind in many small tasks."""
    fields = {"matrix": "A", "method": FINE} | KINDS.get(kind, {}) | more
    for name in ("matrix", "rhs", "weights"):
        if isinstance(fields.get(name), str) and "/" not in fields[name]:
            fields[name] = str(data / fields[name])
    return job_of({"kind": kind.split(" ")[0], "output": str(output)} | fields)


@contextmanager
def stopping_after(monkeypatch, spans):
    """Runs end once they have done so many spans themselves."""
    real, done = Checkpoints.make, itertools.count(1)

    def make(self, system, span, walk):
        made = real(self, system, span, walk)
        if next(done) >= spans:
            raise Stopped
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "make", make)
        yield


def interrupted(monkeypatch, job, spans=5):
    """A run that ends after so many spans; what it kept."""
    with stopping_after(monkeypatch, spans), pytest.raises(Stopped):
        once(job)
    return Scratch(checkpoints_of(job.output))


def arrays(url):
    """All arrays of a result, as bytes."""
    return {name: array[...].tobytes() for name, array in zarr.open_group(str(url), mode="r").arrays()}


def hidden(folder):
    """What lies there that a listing does not show."""
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_interrupted_again_and_again_ends_with_the_same_bits(data, tmp_path, monkeypatch, kind):
    stored(data / "e", np.random.default_rng(5).standard_normal(N), (N,))
    once(job(data, kind, tmp_path / "whole"))
    broken, stops = job(data, kind, tmp_path / "broken"), 0
    kept, real = [], Scratch.write

    def write(self, name, *raw):
        if len(name) == 32:
            kept.append((self.address, name))
        real(self, name, *raw)

    monkeypatch.setattr(Scratch, "write", write)
    while True:
        try:
            with stopping_after(monkeypatch, 17):
                result = once(broken)
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert len(kept) == len(set(kept))  # nothing was done twice
    assert result.summary["resumed_spans"] == 17 * stops
    assert arrays(broken.output) == arrays(tmp_path / "whole")
    assert hidden(tmp_path) == []


def test_an_operator_is_applied_with_the_same_bits_after_an_interrupt(data, tmp_path, monkeypatch):
    operator = tmp_path / "operator"
    once(job(data, "pseudoinverse", operator, form="operator"))
    fields = {"kind": "apply", "operator": str(operator), "rhs": str(data / "b"), "compute": ["pinv", "leverage"]}
    once(job_of(fields | {"output": f"{tmp_path}/whole"}))
    broken = job_of(fields | {"output": f"{tmp_path}/broken"})
    interrupted(monkeypatch, broken, 3)
    assert once(broken).summary["resumed_spans"] == 3
    assert arrays(broken.output) == arrays(tmp_path / "whole")


def test_rows_of_memory_are_told_apart_by_what_they_are(tmp_path, monkeypatch):
    A, b = np.random.default_rng(1).standard_normal((60, 3)), np.ones(60)
    fields = {"kind": "least_squares", "matrix": A, "rhs": b, "output": f"{tmp_path}/x"}
    interrupted(monkeypatch, job_of(fields), 1)
    assert once(job_of(fields | {"rhs": 2 * b})).summary["resumed_spans"] == 0
    interrupted(monkeypatch, job_of(fields | {"overwrite": True}), 1)
    assert once(job_of(fields | {"overwrite": True})).summary["resumed_spans"] == 1


def test_a_listener_hears_what_an_earlier_run_had_done(data, tmp_path, monkeypatch):
    broken, heard = job(data, "least_squares", tmp_path / "x"), []
    interrupted(monkeypatch, broken, 7)
    once(broken, listener=heard.append)
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert notes == ["factor: 7 of 30 spans were done by an earlier run"]


def test_a_job_that_was_edited_uses_what_still_holds_and_leaves_nothing_else_in_its_result(data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    interrupted(monkeypatch, job(data, "qr", output), 65)  # it has begun to write Q
    assert (tmp_path / ".out.partial-kept" / "Q").is_dir()
    interrupted(monkeypatch, job(data, "least_squares", output), 35)
    result = once(job(data, "least_squares", output, rtol=1e-12, no_progress_timeout="1h"))
    assert result.summary["resumed_spans"] == 35
    assert "Q" not in arrays(output)
    assert "Q" not in os.listdir(output)
    assert hidden(tmp_path) == []


# What must not be used


def test_checkpoints_that_are_damaged_torn_or_foreign_are_done_again(data, tmp_path, monkeypatch):
    once(job(data, "least_squares", tmp_path / "whole"))
    broken = job(data, "least_squares", tmp_path / "x")
    kept = interrupted(monkeypatch, broken, 12)
    names = kept.names()
    assert len(names) == 12
    good = [kept.read(name) for name in names]
    flipped = [bytearray(good[number]) for number in range(4)]
    for raw, place in zip(flipped, (0, len(FORM) + 20, len(good[2]) // 2, -1), strict=True):
        raw[place] ^= 4
    foreign = [good[7], b"", good[5][:-1], good[6][:40], good[0] + b"more", b"\x80\x04.", bytes(300), good[11][::-1]]
    for name, raw in zip(names, [*map(bytes, flipped), *foreign], strict=True):
        kept.write(name, raw)
    assert once(broken).summary["resumed_spans"] == 0
    assert arrays(broken.output) == arrays(tmp_path / "whole")


@pytest.mark.parametrize("where", [0, 10, 20, 40, 100, 400, -33, -5])
def test_no_bit_of_a_checkpoint_can_flip_unseen(where):
    raw = b"".join(encoded((Triangle.empty(3, 1, np.dtype(float)), Tally(5)), "name", [1]))
    for bit in range(8):
        damaged = bytearray(raw)
        damaged[where] ^= 1 << bit
        assert decoded(bytes(damaged), "name") is None
    assert decoded(raw, "name") is not None
    assert decoded(raw, "other") is None


def test_a_checkpoint_can_name_no_code():
    header = b'{"name": "n", "read": [], "made": {"class": ["os", "system"], "fields": {"command": "true"}}}'
    body = FORM + struct.pack("<Q", len(header)) + header
    assert decoded(body + hashlib.blake2b(body, digest_size=32).digest(), "n") is None


def test_a_state_comes_back_as_it_was_in_every_bit_and_in_the_same_order_of_memory():
    R = np.asfortranarray(np.random.default_rng(0).standard_normal((4, 4)))
    R[0, 0], R[1, 1], R[2, 2] = -0.0, np.nan, np.inf
    state = Projected(R, 0.1 + 0.2, R.T.astype(complex), Rows(Target("/x", 7), 3, [np.arange(4.0), np.empty((0, 2))]))
    tally = Tally(3, 1, 0, None, (2**127 + 1, 5, 0))
    (again, counted), read = decoded(b"".join(encoded((state, tally), "n", [2**100])), "n")
    assert (counted, read) == (tally, [2**100])
    assert again.gram.tobytes("A") == R.tobytes("A")
    assert again.gram.flags.f_contiguous
    assert again.gram.flags.writeable
    assert again.misfit.hex() == (0.1 + 0.2).hex()
    assert again.rows.target == Target("/x", 7)
    assert [part.shape for part in again.rows.blocks] == [(4,), (0, 2)]


@pytest.mark.parametrize("dtype", [float, complex])
def test_a_triangle_takes_half_the_room_and_only_one_that_is_none_loses_nothing(dtype):
    R = np.asfortranarray(np.triu(np.random.default_rng(2).standard_normal((200, 200)).astype(dtype)))
    raw = b"".join(encoded((R, Tally(5)), "n", [1]))
    assert len(raw) < 0.52 * R.nbytes + 1000
    again = decoded(raw, "n")[0][0]
    assert (again.tobytes("F"), again.flags.f_contiguous) == (R.tobytes("F"), True)
    R[150, 3] = -0.0
    raw = b"".join(encoded((R, Tally(5)), "n", [1]))
    assert decoded(raw, "n")[0][0].tobytes("F") == R.tobytes("F")


def test_equal_parts_of_other_things_have_other_digests():
    pairs = [
        (["a", "b"], ["ab"]),
        ([1], [1.0]),
        ([1], [True]),
        ([None], ["None"]),
        ([[1], [2]], [[1, 2]]),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(4), np.zeros(4, np.float32)),
        (np.zeros(2), np.array([0.0, -0.0])),
        (Target("/a", 1), Target("/a", 1, columns=True)),
    ]
    for one, other in pairs:
        assert list(told(one)) != list(told(other))
    assert list(told(np.eye(3, 2))) == list(told(np.eye(3, 2)))
    with pytest.raises(TypeError, match="nothing that a pass or a system may hold"):
        list(told([print]))


@pytest.mark.parametrize("how", ["written again", "removed"])
def test_an_input_that_changed_is_refused_until_the_job_begins_anew(data, tmp_path, monkeypatch, how):
    broken = job(data, "least_squares", tmp_path / "x", missing_chunks="fill")
    interrupted(monkeypatch, broken, 30)
    chunk = data / "A" / "c" / "3" / "0"
    if how == "removed":
        chunk.unlink()
    else:
        array = zarr.open_array(str(data / "A"), mode="r+")
        array[300:400] = 2 * array[300:400]
    for _ in range(2):  # as often as one tries
        with pytest.raises(
            BadData, match=r"The matrix at .*/A changed since this job was interrupted: .* rows 300 to 400"
        ):
            once(broken)
    result = once(broken, restart=True)
    assert result.summary["resumed_spans"] == 0
    A, b, w = (open_array(str(data / name)).with_config({"read_missing_chunks": True})[...] for name in ("A", "b", "w"))
    expected = np.linalg.lstsq(A * np.sqrt(w)[:, None], b * np.sqrt(w)[:, None])[0]
    np.testing.assert_allclose(result.x, expected, rtol=1e-9)


def test_a_matrix_of_another_shape_is_begun_anew(data, tmp_path, monkeypatch):
    broken = job(data, "svd", tmp_path / "x", vectors="none")
    interrupted(monkeypatch, broken, 20)
    stored(data / "A", np.ones((M, N - 1)), (CHUNK, N - 1), compressors="auto", overwrite=True)
    assert once(broken).summary["resumed_spans"] == 0


@pytest.mark.parametrize("how", ["removed", "written again", "metadata"])
def test_what_was_written_and_is_not_there_any_more_is_written_again(data, tmp_path, monkeypatch, how):
    once(job(data, "qr", tmp_path / "whole"))
    broken = job(data, "qr", tmp_path / "out")
    interrupted(monkeypatch, broken, 70)  # 30 + 30 spans of two factors, and 10 that write
    partial = tmp_path / ".out.partial-kept" / "Q"
    chunks = sorted(path for path in (partial / "c").rglob("*") if path.is_file())
    assert len(chunks) == 10
    if how == "removed":
        chunks[3].unlink()
    elif how == "written again":
        chunks[3].write_bytes(bytes(chunks[3].stat().st_size))
    else:
        (partial / "zarr.json").write_text("{}")
    result = once(broken)
    assert result.summary["resumed_spans"] == (60 if how == "metadata" else 69)
    assert arrays(broken.output) == arrays(tmp_path / "whole")


WRITE = {
    "least_squares of a wide matrix": "x", "pseudoinverse": "pinv", "pseudoinverse of a wide matrix": "pinv", "qr": "Q",
    "svd": "U", "pca": "scores", "low_rank": "L",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), WRITE.items())
def test_whatever_writes_does_so_again_where_its_chunks_are_gone_at_the_end(data, tmp_path, monkeypatch, kind, name):
    stored(data / "e", np.random.default_rng(5).standard_normal(N), (N,))
    once(job(data, kind, tmp_path / "whole"))
    broken = job(data, kind, tmp_path / "out")

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", stop)
        with pytest.raises(Stopped):
            once(broken)
    partial = tmp_path / ".out.partial-kept" / name
    chunks = sorted(path for path in (partial / "c").rglob("*") if path.is_file())
    for number, chunk in enumerate(chunks):
        if number % 7 == 2:
            chunk.unlink()
        elif number % 7 == 4:
            chunk.write_bytes(bytes(chunk.stat().st_size))
    assert len(chunks) > 10
    result = once(broken)
    spans, passes = result.summary["plan"]["spans"], len(result.summary["timings"]) - 1
    assert spans < result.summary["resumed_spans"] < spans * passes
    assert arrays(broken.output) == arrays(tmp_path / "whole")


def test_after_data_that_was_found_wanting_nothing_is_kept(data, tmp_path):
    A = open_array(str(data / "A"))[...]
    A[1234, 2] = np.nan
    stored(data / "bad", A, (CHUNK, N), compressors="auto")
    broken = job(data, "least_squares", tmp_path / "x", matrix="bad")
    with pytest.raises(BadData, match="the first is at row 1,234, column 2"):
        once(broken)
    assert hidden(tmp_path) == []
    zarr.open_array(str(data / "bad"), mode="r+")[1200:1300] = 1.0
    assert once(broken).summary["resumed_spans"] == 0


def test_after_a_chunk_that_could_not_be_read_the_others_are_kept(data, tmp_path):
    chunk = data / "A" / "c" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.unlink()
    broken = job(data, "least_squares", tmp_path / "x")
    with pytest.raises(BadData, match=r"The chunk c/0/0 of .* is not in the store"):
        once(broken)
    kept = len(Scratch(checkpoints_of(broken.output)).names())
    assert kept > 5
    chunk.write_bytes(whole)
    assert once(broken).summary["resumed_spans"] == kept


# Where it cannot be kept


def test_a_run_goes_on_where_nothing_can_be_kept_and_says_so(data, tmp_path):
    (tmp_path / ".x.checkpoints").write_text("in the way")
    heard = []
    once(job(data, "least_squares", tmp_path / "x"), listener=heard.append)
    (note,) = [event.text for event in heard if isinstance(event, Note)]
    assert note.startswith(f"factor: what is done cannot be kept at {tmp_path}/.x.checkpoints (")
    assert note.endswith("so an interrupted run will start again; choose an output beside which all workers can write, "
                         "to have it kept")  # fmt: skip


def test_without_checkpoints_nothing_stays(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "x", checkpoints=False)
    real = engine.walk
    monkeypatch.setattr(
        engine, "walk", lambda *words: (_ for _ in ()).throw(Stopped) if words[2].number > 9 else real(*words)
    )
    with pytest.raises(Stopped):
        once(broken)
    assert hidden(tmp_path) == []


def test_checkpoints_that_would_not_fit_are_left_out(data, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.execute.plan_of", lambda *words: replace(plan_of(*words), scratch_bytes=2**60))
    heard = []
    result = once(job(data, "least_squares", tmp_path / "x"), listener=heard.append)
    assert result.certificate.rank == N
    (note,) = [event.text for event in heard if isinstance(event, Note)]
    assert note == (
        "1024 PiB for what spans have done would not fit beside the output, so an interrupted run will start again"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_what_is_kept(data, tmp_path, monkeypatch, kind):
    stored(data / "e", np.random.default_rng(5).standard_normal(N), (N,))
    sizes = []
    real = Scratch.remove
    monkeypatch.setattr(Scratch, "remove", lambda self: (sizes.append(self.size()), real(self)))
    result = once(job(data, kind, tmp_path / "x"))
    kept, passes = max(sizes), len(result.summary["timings"]) - 1
    planned = result.summary["plan"]["scratch_bytes"]
    assert 0 < kept <= planned * max(1, passes / len(result.summary["plan"]["passes"]))


def test_two_runs_at_once_do_not_meet(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "x", overwrite=True)
    interrupted(monkeypatch, broken, 20)
    first = Staging(broken.output, Writer("111111111111", resumes=True), overwrite=True)
    assert first.checkpoints
    assert once(broken).summary["resumed_spans"] == 0  # another run has what could be gone on from
    assert leftovers(broken.output) == []
    first.discard(keep=True)
    assert once(broken).summary["resumed_spans"] == 20
    assert hidden(tmp_path) == []


# Left over


def test_clean_removes_what_is_left_and_nothing_else(data, tmp_path, monkeypatch, command):
    for name in ("one", "two"):
        interrupted(monkeypatch, job(data, "qr", tmp_path / name), 65)
    once(job(data, "least_squares", tmp_path / "three"))
    (tmp_path / ".mine").write_text("not theirs")
    before = hidden(tmp_path)
    assert before == [".mine", *(f".{name}.{part}" for name in ("one", "two")
                                 for part in ("checkpoints", "partial-kept", "partial-kept.lock"))]  # fmt: skip
    said = command("clean", ".", "--dry-run")
    assert said.returncode == 0
    assert said.stdout.count("would remove") == 4
    assert f"would remove {tmp_path}/.one.checkpoints (" in said.stdout
    assert hidden(tmp_path) == before
    held = Staging(f"{tmp_path}/two", Writer("222222222222", resumes=True), overwrite=False)
    assert command("clean", "one", "two").stdout.count("removed") == 2
    assert hidden(tmp_path) == [name for name in before if ".one" not in name]
    held.discard(keep=True)
    assert '"bytes"' in command("clean", ".", "--json").stdout
    assert hidden(tmp_path) == [".mine"]
    assert command("clean", "one", "nowhere").stdout == "nothing is left over\n"
    assert len(arrays(tmp_path / "three")) > 0


def test_a_sweep_leaves_what_a_run_can_go_on_from_and_a_run_that_keeps_nothing_forgets_it(data, tmp_path, monkeypatch):
    interrupted(monkeypatch, job(data, "qr", tmp_path / "x"), 20)
    sweep(f"{tmp_path}/x")
    assert len(leftovers(f"{tmp_path}/x")) == 2
    once(job(data, "qr", tmp_path / "x", checkpoints=False))
    assert hidden(tmp_path) == []


def test_what_only_looks_like_ours_is_left_alone(data, tmp_path, command):
    (tmp_path / ".x.checkpoints" / "epoch-3").mkdir(parents=True)
    (tmp_path / ".x.checkpoints" / "epoch-3" / "weights").write_text("theirs")
    for name in (".x.partial-draft", ".x.partial-kept.checkpoints", ".x.partial-0123456789abc"):
        (tmp_path / name).mkdir()
    before = hidden(tmp_path)
    once(job(data, "least_squares", tmp_path / "x"))
    assert command("clean", ".").stdout == "nothing is left over\n"
    assert hidden(tmp_path) == before
    assert (tmp_path / ".x.checkpoints" / "epoch-3" / "weights").read_text() == "theirs"


def test_where_locks_cannot_be_had_no_run_goes_on_with_another_ones_work(data, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    first, second = (Staging(f"{tmp_path}/x", Writer(run, resumes=True), overwrite=False)
                     for run in ("111111111111", "222222222222"))  # fmt: skip
    assert (first.checkpoints, second.checkpoints) == (None, None)
    assert first.where != second.where
    assert clean(f"{tmp_path}/x") == []
    heard = []
    once(job(data, "least_squares", tmp_path / "y"), listener=heard.append)
    assert [event.text for event in heard if isinstance(event, Note)] == [
        f"another run may be writing to {tmp_path}/y now, so this one keeps nothing for later"
    ]


# What changes behind its back


def test_a_chunk_that_many_spans_read_may_not_change(tmp_path, monkeypatch):
    random = np.random.default_rng(2)
    matrix = stored(tmp_path / "A", random.standard_normal((M, N)), (CHUNK, N), compressors="auto")
    rhs = stored(tmp_path / "b", np.ones(M), (M,), compressors="auto")
    fields = {"kind": "least_squares", "matrix": matrix, "rhs": rhs, "verify": False, "method": FINE}
    broken = job_of(fields | {"output": f"{tmp_path}/x"})
    interrupted(monkeypatch, broken, 10)  # whichever ten they are
    zarr.open_array(rhs, mode="r+")[...] = 2.0
    with pytest.raises(InputChanged, match=r"The rhs at .*/b changed since this job was interrupted"):
        once(broken)


def test_picked_columns_of_a_wide_matrix_may_not_change(data, tmp_path, monkeypatch):
    source = {"url": str(data / "wide"), "columns": list(range(0, M, 2))}
    broken = job(data, "svd", tmp_path / "x", matrix=source, vectors="none")
    interrupted(monkeypatch, broken, 10)
    array = zarr.open_array(str(data / "wide"), mode="r+")
    array[...] = 2 * array[...]
    with pytest.raises(InputChanged, match=r"The matrix at .*/wide changed"):
        once(broken)


@pytest.mark.parametrize("how", ["fill_value", "order"])
def test_metadata_by_which_chunks_stand_for_other_numbers_begins_anew(tmp_path, monkeypatch, how):
    A = np.random.default_rng(4).standard_normal((M, N))
    A[:CHUNK] = 0
    options = {"compressors": None, "zarr_format": 2, "order": "C"}
    array = zarr.create_array(f"{tmp_path}/A", shape=A.shape, dtype="f8", chunks=(CHUNK, N), fill_value=0, **options)
    array[...] = A  # the first chunk is nothing but the fill value, and is not stored
    fields = {"kind": "svd", "matrix": f"{tmp_path}/A", "missing_chunks": "fill", "method": FINE}
    broken = job_of(fields | {"output": f"{tmp_path}/x"})
    interrupted(monkeypatch, broken, 1)
    path = tmp_path / "A" / ".zarray"
    changed = json.loads(path.read_text()) | ({"fill_value": 7.0} if how == "fill_value" else {"order": "F"})
    path.write_text(json.dumps(changed))
    result = once(broken)
    assert result.summary["resumed_spans"] == 0
    expected = np.linalg.svd(zarr.open_array(f"{tmp_path}/A")[...], compute_uv=False)
    np.testing.assert_allclose(result["s"], expected, rtol=1e-10)


def test_a_task_of_a_dead_run_that_writes_late_is_found_out(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "out")
    once(job(data, "qr", tmp_path / "whole"))
    real = engine.Engine.check_written

    def late(self):
        url = str(tmp_path / ".out.partial-kept" / "Q")
        zarr.open_array(url, mode="r+")[300:400] = 5.0
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "check_written", late)
        with pytest.raises(RunFailed, match=r"Something else wrote to .*/Q while this job did.* Run the job again"):
            once(broken)
    result = once(broken)
    assert result.summary["resumed_spans"] == 3 * result.summary["plan"]["spans"] - 1
    assert arrays(broken.output) == arrays(tmp_path / "whole")


def test_a_late_write_is_found_out_until_the_last_moment(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "out")
    real = folders._flush

    def late(folder):
        real(folder)
        zarr.open_array(f"{folder}/Q", mode="r+")[300:400] = 5.0

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_flush", late)
        with pytest.raises(RunFailed, match="Something else wrote to"):
            once(broken)
    assert not (tmp_path / "out").exists()
    once(broken)
    assert hidden(tmp_path) == []


def test_who_is_faster_is_never_replaced_without_leave(tmp_path, monkeypatch):
    first, second = (Staging(f"{tmp_path}/x", Writer(run), overwrite=False) for run in ("111111111111", "222222222222"))
    for staging in (first, second):
        staging.put("x", np.ones(3), ("column",))
    summary = {"schema": "result/1", "certificate": {"statement": ""}}
    with pytest.raises(PlanRefused, match=r"holds a result already\. Nothing was changed"):
        first.commit({"tallgrass": summary}, lambda: second.commit({"tallgrass": summary | {"by": "second"}}))
    first.discard()
    assert zarr.open_group(f"{tmp_path}/x").attrs["tallgrass"]["by"] == "second"
    assert hidden(tmp_path) == []


def test_a_twin_of_a_task_that_writes_late_costs_a_second_look_and_not_the_run(data, tmp_path, monkeypatch):
    once(job(data, "qr", tmp_path / "whole"))
    real, late = engine.Engine._is_as_written, [True]

    def twin(self, targets, expected):
        if late:
            late.clear()
            array = zarr.open_array(targets[0].url, mode="r+")
            array[300:400] = array[300:400]  # the same bits, at another time
        return real(self, targets, expected)

    monkeypatch.setattr(engine.Engine, "_is_as_written", twin)
    result = once(job(data, "qr", tmp_path / "out"))
    assert result.summary["resumed_spans"] == result.summary["plan"]["spans"] - 1
    assert arrays(tmp_path / "out") == arrays(tmp_path / "whole")


def test_the_same_process_writes_one_place_again_and_again_in_other_forms(data, tmp_path):
    for more in ({}, {"compressor": "zstd"}, {"dtype": "float32"}, {"matrix": "wide"}):
        result = once(job(data, "pseudoinverse", tmp_path / "x", overwrite=True, **more))
        assert result.certificate.penrose["AXA = A"] < 1e-5


def test_a_pinv_that_was_written_again_is_measured_again(data, tmp_path, monkeypatch):
    broken = job(data, "pseudoinverse", tmp_path / "x")
    summary = once(job(data, "pseudoinverse", tmp_path / "y")).summary
    passes, spans = len(summary["timings"]) - 1, summary["plan"]["spans"]
    interrupted(monkeypatch, broken, (passes - 1) * spans + 9)  # nine of them have measured
    for chunk in list((tmp_path / ".x.partial-kept" / "pinv" / "c" / "0").iterdir())[:4]:
        chunk.unlink()
    once(broken)
    assert arrays(broken.output) == arrays(tmp_path / "y")


def test_what_zarr_had_not_renamed_yet_is_no_part_of_the_result(data, tmp_path, monkeypatch):
    broken = job(data, "qr", tmp_path / "x")
    interrupted(monkeypatch, broken, 70)
    (tmp_path / ".x.partial-kept" / "Q" / "c" / "0.8b7f.partial").write_text("torn")
    once(broken)
    assert not list((tmp_path / "x").rglob("*.partial"))


# The command


def slow_job(tmp_path):
    """A job of a second or more in many spans, as a file."""
    A = np.random.default_rng(2).standard_normal((60_000, 120))
    stored(tmp_path / "A", A, (500, 120), compressors="auto")
    return written(tmp_path, {"kind": "qr", "matrix": f"{tmp_path}/A", "output": f"{tmp_path}/out", "method": FINE})


def typed(tmp_path, *words):
    return [sys.executable, "-m", "workers.cli", *words], {"cwd": tmp_path, "env": environment(), "text": True}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_after_a_signal(tmp_path, number):
    slow_job(tmp_path)
    line, options = typed(tmp_path, "run", "job.yaml")
    kept = Scratch(f"{tmp_path}/.out.checkpoints")
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options) as process:
        wait_for(lambda: len(kept.names()) > 20)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (-9, 130)
    assert not (tmp_path / "out").exists()
    if number != signal.SIGKILL:
        assert "No result was written." in said
        assert "What was done is kept beside the output (" in said
        assert f"the same command goes on from there, and `tallgrass clean {tmp_path}/out` removes it." in said
    done = subprocess.run(line, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert "spans were done by an earlier run" in done.stderr
    assert hidden(tmp_path) == []
    once(job_of({"kind": "qr", "matrix": f"{tmp_path}/A", "output": f"{tmp_path}/whole", "method": FINE}))
    assert arrays(tmp_path / "out") == arrays(tmp_path / "whole")


def test_restart_begins_anew(tmp_path, monkeypatch):
    path = slow_job(tmp_path)
    from pipelines.load import load_job

    interrupted(monkeypatch, load_job(str(path), ()), 20)
    line, options = typed(tmp_path, "run", "job.yaml", "--restart")
    done = subprocess.run(line, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert "earlier run" not in done.stderr


# Object stores


def test_a_run_on_s3_goes_on_where_it_was_interrupted(remote, monkeypatch):
    output = f"{remote.bucket}/out"
    fields = {"kind": "qr", "form": "explicit", "matrix": remote.fields["matrix"], "method": FINE}
    once(job_of(fields | {"output": f"{remote.bucket}/whole"}))
    broken = job_of(fields | {"output": output})
    kept = interrupted(monkeypatch, broken, 14)
    assert len(kept.names()) == 14
    result = once(broken)
    assert result.summary["resumed_spans"] == 14
    assert arrays_of(output) == arrays_of(f"{remote.bucket}/whole")
    assert kept.names() == []
    assert leftovers(output) == []


def test_what_a_killed_run_left_on_s3_is_not_taken_while_its_writer_may_live(remote, monkeypatch, tmp_path):
    output = f"{remote.bucket}/out"
    broken = job_of(
        {"kind": "qr", "form": "explicit", "matrix": remote.fields["matrix"], "method": FINE, "output": output}
    )
    interrupted(monkeypatch, broken, 14)
    store, mine = open_store(output), this_process()
    place = mine.partition(" of ")[2]
    parent = f"process {os.getppid()}.{_started(os.getppid())} of {place}"
    for writer, free in ((parent, False), ("process 7.1 of elsewhere.1", False), ("job abc", False),
                         (f"{mine}1", False), (f"process {2**22 + 1}.5 of {place}", True)):  # fmt: skip
        store.write(".tallgrass-partial", f"2026-01-01 10:00 UTC by {writer}".encode())
        if free:
            assert clean(output) == [(f"{remote.bucket}/.out.checkpoints", 0), (output, 0)]
        else:
            with pytest.raises(PlanRefused, match=r"is what a run writes, or has left when it was killed, that began"):
                once(broken)
            assert leftovers(output) == []
    assert store.names() == []
    interrupted(monkeypatch, broken, 14)
    store.write(".tallgrass-partial", b"2026-01-01 10:00 UTC by job abc")
    same = Staging(output, Writer("r", resumes=True, name="job abc"), overwrite=False)
    same.discard(keep=True)
    assert once(broken).summary["resumed_spans"] == 14


def arrays_of(url):
    """The same as `arrays`, from a store."""
    from pipelines.storage import array_names

    return {name: open_array(f"{url}/{name}")[...].tobytes() for name in array_names(url)}
