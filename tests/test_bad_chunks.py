"""Chunks that a disk spoils, cannot read, or does not let one read: named, or announced where nobody could notice."""

import os
from contextlib import suppress
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from pipelines.errors import BadData, PlanRefused
from pipelines.plan import make_plan
from pipelines.storage.reader import Reader
from tests.conftest import stored
from tests.disks import disk
from tests.test_bad_input import mode, plain_user
from tests.test_fingerprints import chunk_of
from tests.test_resume import arrays, hidden, job, once

__all__ = ["disk", "plain_user"]

M, N, CHUNK = 400, 8, 10
CHECKED = {
    "crc32c": {"compressors": [Crc32cCodec()]},
    "zstd with its checksum": {"compressors": [ZstdCodec(checksum=True)]},
    "zstd and crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "gzip": {"compressors": [GzipCodec()]},
    "shards of crc32c": {"compressors": [Crc32cCodec()], "shards": (20, N)},
    "shards of zstd and crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()], "shards": (20, N)},
    "v2 with crc32": {"zarr_format": 2, "filters": [numcodecs.CRC32()], "compressors": None},
    "v2 with zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
}
UNCHECKED = {
    "plain": {"compressors": None},
    "zstd": {"compressors": [ZstdCodec()]},
    "shards": {"compressors": None, "shards": (20, N)},
    "v2": {"zarr_format": 2, "compressors": None},
    "v2 with blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "v2 with lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "v2 with lzma": {"zarr_format": 2, "compressors": numcodecs.LZMA()},
    "blosc": {"compressors": [BloscCodec(cname="lz4")]},
    "blosc that compresses nothing": {"compressors": [BloscCodec(cname="lz4", clevel=0)]},
    "shards of blosc": {"compressors": [BloscCodec(cname="lz4")], "shards": (20, N)},
}
ALL = CHECKED | UNCHECKED


def made(folder, form):
    """A matrix stored in a form."""
    A = np.random.default_rng(3).standard_normal((M, N)).round(3)
    return stored(folder / "A", A, (CHUNK, N), **ALL[form])


def read(url):
    """The first rows, which lie in one file."""
    return Reader(url, fill_missing=False).read(slice(0, CHUNK), slice(0, N))


@pytest.mark.slow
@pytest.mark.parametrize("form", CHECKED)
def test_no_bit_of_a_chunk_with_a_checksum_can_flip_unseen(tmp_path, form):
    url = made(tmp_path, form)
    file, expected, unseen = chunk_of(url, 0), read(url), 0
    raw = file.read_bytes()
    places = range(0, len(raw), 1 if len(raw) < 500 else 7)
    for place in places:
        spoilt = bytearray(raw)
        spoilt[place] ^= 1 << place % 8
        file.write_bytes(spoilt)
        with suppress(BadData):
            np.testing.assert_array_equal(read(url), expected)  # a time in a header, and other chunks of the shard
            unseen += 1
    assert unseen < len(places) / (1.5 if "shards" in form else 10)


@pytest.mark.parametrize("form", CHECKED)
def test_a_run_names_the_chunk_whose_bits_flipped_keeps_the_others_and_goes_on(tmp_path, form):
    url = made(tmp_path, form)
    file = chunk_of(url, 7)
    raw = file.read_bytes()
    spoilt = bytearray(raw)
    spoilt[30] ^= 2
    file.write_bytes(spoilt)
    fields = job(tmp_path, "qr", tmp_path / "x", matrix=url)
    with pytest.raises(BadData, match=f"The chunk {file}.* is damaged: .* Write this chunk again from its source"):
        once(fields)
    assert not (tmp_path / "x").exists()
    file.write_bytes(raw)
    assert once(fields).summary["resumed_spans"] > 0
    once(job(tmp_path, "qr", tmp_path / "quiet", matrix=url))
    assert arrays(tmp_path / "x") == arrays(tmp_path / "quiet")


@pytest.mark.parametrize("form", ALL)
def test_the_plan_warns_of_arrays_without_checksums_and_a_job_may_insist(tmp_path, form):
    url = made(tmp_path, form)
    warnings = make_plan(job(tmp_path, "svd", tmp_path / "x", matrix=url)).warnings
    warned = [text for text in warnings if "checksums" in text]
    insisting = job(tmp_path, "svd", tmp_path / "x", matrix=url, require={"checksums": True})
    if form in CHECKED:
        assert warned == []
        assert once(insisting).certificate.rank == N
    else:
        assert warned[0].startswith("The matrix carries no checksums: damage to stored bytes could go unseen.")
        with pytest.raises(PlanRefused, match="The job requires checksums, and the matrix carries none"):
            once(insisting)
        assert hidden(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 16, 30, -1])
@pytest.mark.parametrize("form", ALL)
def test_a_chunk_of_no_length_or_torn_is_named_by_a_run(tmp_path, form, size):
    url = made(tmp_path, form)
    file = chunk_of(url, 3)
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(BadData, match=f"The chunk {file}.* is damaged: "):
        once(job(tmp_path, "svd", tmp_path / "x", matrix=url))
    with pytest.raises(BadData, match=f"The chunk {file}.* is damaged: "):  # nor is it a chunk that is missing
        once(job(tmp_path, "svd", tmp_path / "x", matrix=url, missing_chunks="fill"))


# What the file system does not give


@pytest.mark.parametrize("fingerprint", ["stat", "content"])
@pytest.mark.parametrize("form", ["plain", "crc32c", "zstd", "shards", "v2"])
def test_a_chunk_that_the_disk_cannot_read_is_named_and_missed_no_more_once_it_is_back(
    disk, tmp_path, form, fingerprint
):
    url = made(disk.folder, form)
    once(job(tmp_path, "qr", tmp_path / "quiet", matrix=url))
    file = chunk_of(url, 5)
    raw = file.read_bytes()
    disk.cannot_read(file)
    broken = job(tmp_path, "qr", tmp_path / "x", matrix=url, fingerprint=fingerprint)
    with pytest.raises(BadData, match=rf"The chunk {file}.* cannot be read: Input/output error. Its disk fails"):
        once(broken)
    assert not (tmp_path / "x").exists()
    disk.readable_again()
    assert file.read_bytes() == raw
    assert (once(broken).summary["resumed_spans"] > 0) == (form not in ("plain", "v2"))  # those are one span
    assert arrays(tmp_path / "x") == arrays(tmp_path / "quiet")


def test_metadata_that_the_disk_cannot_read_are_named(disk, tmp_path):
    url = made(disk.folder, "plain")
    disk.cannot_read(Path(url) / "zarr.json")
    with pytest.raises(BadData, match=f"The metadata of {url} cannot be read: Input/output error. Its disk fails"):
        once(job(tmp_path, "qr", tmp_path / "x", matrix=url))


@pytest.mark.parametrize("fingerprint", ["stat", "content"])
@pytest.mark.parametrize("form", ["plain", "crc32c", "zstd", "shards"])
@pytest.mark.slow
def test_a_folder_of_chunks_into_which_one_may_not_look(tmp_path, command, plain_user, form, fingerprint):
    url = made(tmp_path, form)
    fields = {"kind": "svd", "matrix": url, "output": "x", "fingerprint": fingerprint}
    with mode(Path(url) / "c" / "7", 0):
        done = command("run", "job.yaml", "--quiet", job=fields, **plain_user)
    assert done.returncode == 4, done.stderr
    advice = "Give this user the right to read it, and run the job again."
    assert done.stderr == f"The chunk {url}/c/7/0 cannot be read: Permission denied. {advice}\n"
    assert not (tmp_path / "x").exists()
