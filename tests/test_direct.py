"""Chunks that are decoded without Zarr: the numbers that it reads, and whatever is odd is left to it."""

import asyncio
import json
import time
from itertools import combinations

import google_crc32c
import numcodecs
import numpy as np
import obstore
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from pipelines.errors import BadData
from pipelines.storage import objects
from pipelines.storage.arrays import open_store
from pipelines.storage.objects import Wanted
from pipelines.storage.reader import Reader
from tests.conftest import stored

M, N, CHUNK = 23, 10, (4, 3)
NUMBERS = np.random.default_rng(5).standard_normal((M, N)).round(2)
BLOSC = BloscCodec(cname="lz4", shuffle="shuffle")
DIRECT = {
    "zstd": {"compressors": [ZstdCodec()]},
    "zstd with its checksum": {"compressors": [ZstdCodec(checksum=True)]},
    "zstd and crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "blosc": {"compressors": [BLOSC]},
    "blosc of zstd": {"compressors": [BloscCodec(cname="zstd", shuffle="bitshuffle")]},
    "shards": {"compressors": None, "shards": (8, 6)},
    "shards of crc32c": {"compressors": [Crc32cCodec()], "shards": (8, 6)},
    "shards of zstd": {"compressors": [ZstdCodec()], "shards": (8, 6)},
    "v2 with zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd()},
    "v2 with blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "v2 with lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
}
LEFT_TO_ZARR = {
    "gzip": {"compressors": [GzipCodec()]},
    "two compressors": {"compressors": [ZstdCodec(), GzipCodec()]},
    "a checksum before the compressor": {"compressors": [Crc32cCodec(), ZstdCodec()]},
    "transposed": {"compressors": [ZstdCodec()], "filters": [TransposeCodec(order=(1, 0))]},
    "v2 in F order": {"zarr_format": 2, "compressors": numcodecs.Zstd(), "order": "F"},
    "v2 with a filter": {"zarr_format": 2, "compressors": numcodecs.Zstd(), "filters": [numcodecs.Shuffle(8)]},
}


class Nobody:
    """In the place of Zarr's array: whoever reads from it fails."""

    def __getitem__(self, place):
        raise AssertionError(f"Zarr is asked for {place}")

    def __getattr__(self, name):
        return getattr(self.array, name)


def without_zarr(url):
    """A reader that may not read through Zarr."""
    reader, nobody = Reader(url, fill_missing=False), Nobody()
    nobody.array, reader.array = reader.array, nobody
    return reader


@pytest.mark.parametrize("form", DIRECT)
def test_any_window_is_decoded_into_the_memory_that_is_given(save, form):
    reader = without_zarr(save("A", NUMBERS, CHUNK, **DIRECT[form]))
    for top, bottom in combinations((0, 3, 4, 17, M), 2):
        for left, right in combinations((0, 2, 6, N), 2):
            out = np.full((bottom - top, right - left), np.nan)
            assert reader.read(slice(top, bottom), slice(left, right), out) is out
            np.testing.assert_array_equal(out, NUMBERS[top:bottom, left:right])


@pytest.mark.parametrize("form", LEFT_TO_ZARR)
def test_other_codecs_are_left_to_zarr(save, form):
    reader = Reader(save("A", NUMBERS, CHUNK, **LEFT_TO_ZARR[form]), fill_missing=False)
    assert reader._direct is None
    np.testing.assert_array_equal(reader.read(slice(0, M), slice(0, N)), NUMBERS)


@pytest.mark.parametrize("options", [{"shards": (12,)}, {}])
def test_a_vector_is_one_column(save, options):
    reader = without_zarr(save("b", NUMBERS[:, 0], (4,), compressors=[ZstdCodec()], **options))
    np.testing.assert_array_equal(reader.read(slice(2, M), slice(0, 1)), NUMBERS[2:, :1])


@pytest.mark.parametrize("numbers", [3, 11, 13])
@pytest.mark.parametrize("compressor", [numcodecs.Zstd(), numcodecs.Blosc(), numcodecs.LZ4()])
def test_a_chunk_that_holds_fewer_or_more_numbers_than_it_should_is_damaged(tmp_path, compressor, numbers):
    url = stored(tmp_path / "A", NUMBERS, CHUNK, zarr_format=2, compressors=compressor)
    (tmp_path / "A" / "1.0").write_bytes(compressor.encode(np.ones(numbers)))
    reader, out = Reader(url, fill_missing=False), np.full(CHUNK, 7.0)  # of which nothing may be left over
    with pytest.raises(BadData, match=r"The chunk .*/A/1.0 is damaged"):
        reader.read(slice(4, 8), slice(0, 3), out)


@pytest.mark.parametrize("compressors", [None, [ZstdCodec()]])
def test_a_shard_that_is_written_again_is_read_by_its_own_index(tmp_path, compressors):
    url = stored(tmp_path / "A", NUMBERS, CHUNK, compressors=compressors, shards=(8, 6))
    reader = Reader(url, fill_missing=False)
    reader.read(slice(0, M), slice(0, N))
    later = np.random.default_rng(6).standard_normal((M, N))  # which zstd makes longer
    zarr.open_array(url, mode="r+")[...] = later
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(slice(0, M), slice(0, N)), later)


def test_a_shard_whose_index_is_damaged_is_named(tmp_path):
    url = stored(tmp_path / "A", NUMBERS, CHUNK, compressors=None, shards=(8, 6))
    file = tmp_path / "A" / "c" / "1" / "0"
    raw = bytearray(file.read_bytes())
    raw[-20] ^= 1  # of a length, which Zarr's own index has a checksum for
    file.write_bytes(raw)
    with pytest.raises(BadData, match=rf"The chunk {file} is damaged: its index does not have the CRC-32C"):
        Reader(url, fill_missing=False).read(slice(0, M), slice(0, N))


def sharded(place, array, chunk, codecs):
    """An array of these numbers in one chunk, with codecs that Zarr reads and does not offer to write; its path."""
    place.mkdir()
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    metadata = {"zarr_format": 3, "node_type": "array", "shape": array.shape, "data_type": "float64", "fill_value": 0.0}
    metadata |= {"chunk_grid": grid, "chunk_key_encoding": keys, "codecs": [codec.to_dict() for codec in codecs]}
    (place / "zarr.json").write_text(json.dumps(metadata, default=str))
    zarr.open_array(place, mode="r+")[...] = array
    return str(place)


PART = ShardingCodec(chunk_shape=(2, 4), codecs=[BytesCodec()])
HIDDEN = {
    "shards with a checksum of their own": [PART, Crc32cCodec()],
    "shards that are compressed": [PART, ZstdCodec()],
    "shards that are transposed": [
        TransposeCodec(order=(1, 0)),
        ShardingCodec(chunk_shape=(4, 2), codecs=[BytesCodec()]),
    ],
    "shards in shards": [ShardingCodec(chunk_shape=(4, 4), codecs=[PART])],
}


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@pytest.mark.parametrize("form", HIDDEN)
def test_shards_whose_missing_chunks_nobody_would_see_are_refused_or_filled(tmp_path, form):
    numbers = np.random.default_rng(7).standard_normal((8, 4))
    numbers[:2] = 0  # Zarr leaves that chunk out
    url = sharded(tmp_path / "A", numbers, (8, 4), HIDDEN[form])
    with pytest.raises(BadData, match=r"cannot be checked for missing inner chunks. Set `missing_chunks: fill`"):
        Reader(url, fill_missing=False).read(slice(0, 8), slice(0, 4))
    np.testing.assert_array_equal(Reader(url, fill_missing=True).read(slice(0, 8), slice(0, 4)), numbers)


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_compressed_shards_are_not_taken_for_numbers_where_they_are_as_long(tmp_path):
    codecs = [ShardingCodec(chunk_shape=(4, 4), codecs=[BytesCodec()]), ZstdCodec()]
    raw = np.random.default_rng(0).integers(0, 256, 2048, dtype=np.uint8)
    for again in range(20, 300):  # bytes that come once more, so that all are as long as the numbers alone
        numbers = np.concatenate([raw[:-again], raw[:again]]).view(float).reshape(64, 4)
        url = sharded(tmp_path / str(again), numbers, (64, 4), codecs)
        if (tmp_path / str(again) / "c" / "0" / "0").stat().st_size == numbers.nbytes:
            break
    found = Reader(url, fill_missing=True).read(slice(0, 64), slice(0, 4))
    assert found.tobytes() == numbers.tobytes()


def test_an_index_may_have_its_other_byte_first(tmp_path):
    big = ShardingCodec(
        chunk_shape=(2, 4), codecs=[BytesCodec()], index_codecs=[BytesCodec(endian="big"), Crc32cCodec()]
    )
    numbers = np.random.default_rng(8).standard_normal((8, 4))
    reader = without_zarr(sharded(tmp_path / "A", numbers, (8, 4), [big]))
    np.testing.assert_array_equal(reader.read(slice(0, 8), slice(0, 4)), numbers)


def test_what_is_wrong_with_an_inner_chunk_is_said_and_not_that_there_are_errors(tmp_path):
    part = ShardingCodec(chunk_shape=(2, 4), codecs=[BytesCodec()], index_codecs=[BytesCodec()])
    url = sharded(tmp_path / "A", np.ones((8, 4)), (8, 4), [part])
    file = tmp_path / "A" / "c" / "0" / "0"
    index = np.frombuffer(file.read_bytes()[256:], "<u8").reshape(4, 2).copy()
    index[1] = 2**62  # which no checksum tells
    file.write_bytes(file.read_bytes()[:256] + index.tobytes())
    with pytest.raises(BadData, match=r"/A/c/0/0 \(inner chunk \(1, 0\)\) is damaged: \[Errno 22\] Invalid argument"):
        Reader(url, fill_missing=False).read(slice(0, 8), slice(0, 4))


# Objects


@pytest.fixture
def parts(monkeypatch):
    """Objects come in parts of 50 bytes."""
    monkeypatch.setattr(objects, "PART_BYTES", 50)


@pytest.mark.parametrize("form", ["plain", "crc32c", "zstd", "shards of zstd", "v2 with blosc"])
def test_objects_are_put_together_from_their_parts(s3, parts, form):
    options = DIRECT | {"plain": {"compressors": None}, "crc32c": {"compressors": [Crc32cCodec()]}}
    stored(open_store(f"{s3}/A"), NUMBERS, CHUNK, **options[form])
    reader, out = without_zarr(f"{s3}/A"), np.full((M - 1, N), np.nan)
    assert reader.read(slice(1, M), slice(0, N), out) is out
    np.testing.assert_array_equal(out, NUMBERS[1:])


def test_no_chunk_is_put_together_from_two_versions(s3, parts):
    store = open_store(f"{s3}/A")
    stored(store, NUMBERS, CHUNK, compressors=None)
    reader = Reader(f"{s3}/A", fill_missing=False)
    everything = slice(0, M), slice(0, N)
    before = reader.identity(*everything, within=everything)  # after which versions are known
    zarr.open_array(store, mode="r+")[...] = -NUMBERS
    np.testing.assert_array_equal(reader.read(*everything), -NUMBERS)
    with pytest.raises(AssertionError, match="Zarr is asked for"):  # since what is known does not hold any more
        asked_directly(reader, everything)
    assert reader.identity(*everything, within=everything) != before
    asked_directly(reader, everything)


def test_the_index_of_a_shard_goes_with_its_version_also_where_identities_were_never_asked_for(s3):
    store, numbers = open_store(f"{s3}/A"), np.arange(32.0).reshape(8, 4)
    stored(store, numbers, (2, 4), compressors=None, shards=(8, 4))
    reader, everything = Reader(f"{s3}/A", fill_missing=False), (slice(0, 8), slice(0, 4))
    reader.read(*everything)
    raw = store.read("c/0/0")
    index = np.frombuffer(raw[256:320], "<u8").reshape(4, 2).copy()
    data = b"".join(raw[first : first + size] for first, size in index[::-1].tolist())
    index[:, 0] = index[::-1, 0]  # the same numbers, in another order
    store.write("c/0/0", data + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    np.testing.assert_array_equal(reader.read(*everything), numbers)


def test_parts_are_of_one_version_also_where_the_store_does_not_heed_if_match(s3, parts, monkeypatch):
    async def get(store, key, *, options):
        answer = await usual(store, key, options={k: v for k, v in options.items() if k != "if_match"})
        if options["range"][0] == 0:
            await obstore.put_async(store, "k", b"b" * 100)
        return answer

    usual, store = obstore.get_async, open_store(f"{s3}/A")
    store.write("k", b"a" * 100)
    version = store.head("k")["e_tag"]
    monkeypatch.setattr(objects, "MOST_PARTS", 1)
    monkeypatch.setattr(obstore, "get_async", get)
    assert store.fetch([Wanted("k", size=100, version=version)]) is None


def test_what_comes_late_is_written_nowhere(s3, monkeypatch):
    async def get(store, key, *, options):
        if key == "gone":
            raise FileNotFoundError(key)
        await asyncio.sleep(0.1)
        written.append(key)
        raise AssertionError("nobody waits for it")

    written, into = [], memoryview(bytearray(8))
    monkeypatch.setattr(obstore, "get_async", get)
    store = open_store(f"{s3}/A")
    wanted = [Wanted("late", size=8, version="1", into=into), Wanted("gone", size=8, version="1")]
    assert store.fetch(wanted) is None
    time.sleep(0.3)
    assert (written, bytes(into)) == ([], bytes(8))


def asked_directly(reader, window):
    array, nobody = reader.array, Nobody()
    nobody.array, reader.array = array, nobody
    try:
        reader.read(*window)
    except BadData as error:
        raise AssertionError(str(error)) from error
    finally:
        reader.array = array


def test_an_object_that_is_gone_is_missing_or_filled(s3):
    store = open_store(f"{s3}/A")
    stored(store, NUMBERS, CHUNK, compressors=[ZstdCodec()])
    obstore.delete(store.store, "c/2/0")
    with pytest.raises(BadData, match=r"The chunk c/2/0 of s3://.*/A is not in the store"):
        Reader(f"{s3}/A", fill_missing=False).read(slice(0, M), slice(0, N))
    filled = Reader(f"{s3}/A", fill_missing=True).read(slice(0, M), slice(0, N))
    assert (filled[8:12, :3] == 0).all()
