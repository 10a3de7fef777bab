"""Stored arrays: read right whatever their codecs, and never silently wrong."""

import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import GZip
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from pipelines import LeastSquares, run
from pipelines.errors import BadData, RunFailed
from pipelines.storage import Reader, Staging, Writer, array_names, describe, open_array, write_rows

NUMBERS = np.arange(23 * 10, dtype=np.float64).reshape(23, 10) - 7.5
CODECS = {
    "plain": {"compressors": None},
    "crc32c": {"compressors": [Crc32cCodec()]},
    "zstd": {"compressors": [ZstdCodec(checksum=True)]},
    "blosc": {"compressors": [BloscCodec()]},
    "gzip": {"compressors": [GzipCodec()]},
    "zstd and crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "big-endian": {"compressors": None, "serializer": BytesCodec(endian="big")},
    "transposed": {"compressors": None, "filters": [TransposeCodec(order=(1, 0))]},
    "shards": {"compressors": None, "shards": (8, 6)},
    "shards of zstd": {"compressors": [ZstdCodec(checksum=True)], "shards": (8, 6)},
    "v2": {"compressors": None, "zarr_format": 2},
    "v2 in F order": {"compressors": None, "zarr_format": 2, "order": "F"},
    "v2 gzip": {"compressors": [GZip()], "zarr_format": 2},
    "v2 with a dot in its keys": {
        "compressors": None,
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "."},
    },
}
PLAIN = ("plain", "crc32c", "v2", "v2 with a dot in its keys")


def whole(url: str, *, fill: bool = False) -> np.ndarray:
    reader = Reader(url, fill_missing=fill)
    return reader.read(slice(0, reader.shape[0]), slice(0, reader.shape[1]))


def letter(url: str) -> str:
    """What is said about an array that cannot be read."""
    with pytest.raises(BadData) as caught:
        whole(url)
    return str(caught.value)


def chunk(url: str, number: int = 1) -> Path:
    """One of the stored objects of an array."""
    named = r"[c0-9./]+"
    return sorted(f for f in Path(url).rglob("*") if f.is_file() and re.fullmatch(named, str(f.relative_to(url))))[
        number
    ]


def damage(file: Path, how: str) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed = {"flipped": raw, "truncated": raw[:-8], "empty": b"", "longer": raw + b"12345678"}
    file.write_bytes(changed[how])


# Reading


@pytest.mark.parametrize("name", CODECS)
def test_an_array_reads_as_it_was_written(save, name):
    url = save("A", NUMBERS, (4, 3), **CODECS[name])
    np.testing.assert_array_equal(whole(url), NUMBERS)


@pytest.mark.parametrize("name", CODECS)
def test_any_window_reads_as_zarr_itself_reads_it(save, name):
    small = NUMBERS[:11, :7]
    url = save("A", small, (4, 3), **CODECS[name] | ({"shards": (8, 6)} if "shards" in CODECS[name] else {}))
    reader, steps = Reader(url, fill_missing=False), 1 if name in PLAIN else 3
    for top, bottom in itertools.combinations(range(0, 12, steps), 2):
        for left, right in itertools.combinations(range(0, 8, steps), 2):
            found = reader.read(slice(top, bottom), slice(left, right))
            np.testing.assert_array_equal(found, small[top:bottom, left:right])


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_read_into_the_memory_that_is_given(save, name):
    url = save("A", NUMBERS, (4, 3), **CODECS[name])
    out = np.full((9, 5), np.nan)
    assert Reader(url, fill_missing=False).read(slice(3, 12), slice(2, 7), out) is out
    np.testing.assert_array_equal(out, NUMBERS[3:12, 2:7])


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", "i4", "u8", "f2", "f4", "c8", "c16"])
@pytest.mark.parametrize("options", [{"compressors": None}, {"compressors": [ZstdCodec()]}])
def test_every_type_of_number_is_read(save, dtype, options):
    numbers = (np.abs(NUMBERS) > 50 if dtype == "bool" else np.abs(NUMBERS)).astype(dtype)
    url = save("A", numbers, (4, 10), **options)
    found = whole(url)
    assert (found.dtype, describe(url).dtype) == (np.dtype(dtype), np.dtype(dtype))
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("options", [{"compressors": None}, {"compressors": [Crc32cCodec()]}, {"shards": (12,)}])
def test_a_vector_is_one_column(save, options):
    url = save("b", NUMBERS[:, 0], (4,), **options)
    np.testing.assert_array_equal(Reader(url, fill_missing=False).read(slice(2, 23), slice(0, 1)), NUMBERS[2:, :1])


def test_the_description_is_what_the_metadata_says(save):
    url = save("A", NUMBERS, (4, 3), shards=(8, 6), attributes={"columns": list("abcdefghij")})
    info = describe(url)
    assert (info.shape, info.chunks, info.shards) == ((23, 10), (4, 3), (8, 6))
    assert (info.zarr_format, info.checksums, info.plain, info.names) == (3, False, False, tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("name", "checksums", "plain"),
    [
        *(("plain", False, True), ("crc32c", True, True), ("zstd", True, False), ("blosc", False, False)),
        *(("gzip", True, False), ("zstd and crc32c", True, False), ("shards of zstd", True, False)),
        *(("big-endian", False, False), ("v2", False, True), ("v2 in F order", False, False)),
        *(("v2 gzip", True, False), ("transposed", False, False)),
    ],
)
def test_it_is_known_which_codecs_notice_damage_and_which_chunks_are_plain_files(save, name, checksums, plain):
    info = describe(save("A", NUMBERS, (4, 3), **CODECS[name]))
    assert (info.checksums, info.plain) == (checksums, plain)


def test_a_file_url_is_a_path(save):
    np.testing.assert_array_equal(whole(Path(save("A b", NUMBERS)).as_uri()), NUMBERS)


# A matrix of which a part is used


@pytest.mark.parametrize("options", [{"compressors": None}, {"compressors": [ZstdCodec()]}])
@pytest.mark.parametrize("columns", [None, [7, 0, 3]])
@pytest.mark.parametrize("rows", [None, (5, 21)])
def test_a_window_of_rows_and_a_list_of_columns_give_the_answer_of_that_part(save, options, columns, rows):
    A = np.random.default_rng(5).standard_normal((23, 8))
    url, rhs = save("A", A, (4, 3), **options), save("b", A[:, 1] ** 2, (7,))
    part = slice(*rows) if rows else slice(None)
    expected = np.linalg.lstsq(A[part][:, columns or slice(None)], A[part, 1] ** 2)[0]
    job = LeastSquares(matrix={"url": url, "rows": rows, "columns": columns}, rhs={"url": rhs, "rows": rows})
    np.testing.assert_allclose(run(job).x, expected, rtol=1e-10)  # condition number below 10


def test_a_list_of_columns_of_a_wide_matrix_gives_the_answer_of_that_part(save):
    A = np.random.default_rng(5).standard_normal((4, 23))
    columns = [20, 1, 2, 7, 3, 22]
    job = LeastSquares(matrix={"url": save("A", A, (2, 5)), "columns": columns}, rhs=save("b", A[:, 0]))
    np.testing.assert_allclose(run(job).x, np.linalg.lstsq(A[:, columns], A[:, 0])[0], rtol=1e-10)


def test_a_column_that_is_not_there_is_an_error(save):
    job = LeastSquares(matrix={"url": save("A", NUMBERS), "columns": [0, 10]}, rhs=save("b", NUMBERS[:, 0]))
    with pytest.raises(BadData, match=r"Column 10 of the matrix at .* it has 10 columns \(0 to 9\)"):
        run(job)


@pytest.mark.parametrize("name", CODECS)
def test_a_narrow_array_gives_the_same_rows_when_its_chunks_are_kept(save, name):
    url = save("b", NUMBERS[:, :2], (6, 2), **CODECS[name] | ({"shards": (12, 2)} if "shards" in CODECS[name] else {}))
    reader = Reader(url, fill_missing=False)
    for start, stop in ((0, 4), (4, 8), (8, 12), (12, 18), (18, 23), (3, 4), (0, 23)):
        np.testing.assert_array_equal(reader.read_kept(slice(start, stop), slice(0, 2)), NUMBERS[start:stop, :2])


def test_a_chunk_that_must_be_read_whole_is_read_once_for_many_rows(save):
    url = save("b", np.arange(1000.0), (1000,), compressors=[Crc32cCodec()])
    reader = Reader(url, fill_missing=False)
    reader.read_kept(slice(0, 10), slice(0, 1))
    chunk(url, 0).unlink()
    np.testing.assert_array_equal(reader.read_kept(slice(10, 20), slice(0, 1))[:, 0], np.arange(10.0, 20))


# Chunks that are not there


@pytest.mark.parametrize("name", ["plain", "crc32c", "zstd", "v2", "v2 gzip", "v2 in F order"])
def test_a_missing_chunk_is_named_and_counted(save, name):
    url = save("A", NUMBERS, (4, 10), **CODECS[name])
    chunk(url, 1).unlink()
    chunk(url, 3).unlink()
    key = "1.0" if "v2" in name else "c/1/0"
    expected = f"The chunk {key} of {url} is not in the store (2 of its 6 chunks are missing)"
    assert letter(url).startswith(expected)
    assert "Zarr would read it as 0.0 without a word" in letter(url)
    assert "set `missing_chunks: fill` in the job file" in letter(url)


@pytest.mark.parametrize("name", ["plain", "crc32c", "zstd", "v2", "v2 gzip", "shards"])
def test_a_missing_chunk_is_filled_when_the_job_accepts_it(save, name):
    url = save("A", NUMBERS, (4, 10), **CODECS[name] | {"fill_value": 3, "shards": None} if name == "shards" else {
        **CODECS[name], "fill_value": 3})  # fmt: skip
    chunk(url, 1).unlink()
    expected = NUMBERS.copy()
    expected[4:8] = 3
    np.testing.assert_array_equal(whole(url, fill=True), expected)


def test_a_missing_shard_is_named(save):
    url = save("A", NUMBERS, (4, 5), shards=(8, 10))
    (Path(url) / "c/1/0").unlink()
    assert letter(url).startswith(f"The chunk c/1/0 of {url} is not in the store.")


def test_an_inner_chunk_that_a_shard_does_not_hold_is_named(save):
    url = save("A", NUMBERS, (4, 5), shards=(8, 10), config={"write_empty_chunks": False})
    zarr.open_array(url)[12:16, 5:] = 0  # all fill values: Zarr leaves the inner chunk out
    assert letter(url).startswith(f"The chunk c/1/0 (its inner chunk (3, 1)) of {url} is not in the store.")
    expected = NUMBERS.copy()
    expected[12:16, 5:] = 0
    np.testing.assert_array_equal(whole(url, fill=True), expected)


def test_the_part_of_a_shard_beyond_the_edge_of_the_array_is_not_missed(save):
    url = save("A", NUMBERS[:9, :4], (4, 3), shards=(16, 12))
    np.testing.assert_array_equal(whole(url), NUMBERS[:9, :4])


def test_a_shard_whose_index_cannot_be_checked_is_not_trusted(save):
    url = save("A", NUMBERS, (4, 10), shards={"shape": (8, 10), "index_location": "start"})
    assert "keeps its shard index in a form that cannot be checked for missing inner chunks" in letter(url)
    np.testing.assert_array_equal(whole(url, fill=True), NUMBERS)


@pytest.mark.filterwarnings("ignore:Rectilinear")
def test_chunks_of_several_sizes_are_refused(tmp_path):
    with zarr.config.set({"array.rectilinear_chunks": True}):
        zarr.create_array(tmp_path / "A", shape=(9, 4), dtype="f8", chunks=[[2, 3, 4], [4]])
        with pytest.raises(BadData, match=r"A has chunks of several sizes, .* Write it in chunks of one size\."):
            Reader(str(tmp_path / "A"), fill_missing=False)


# Chunks that are damaged


@pytest.mark.parametrize("how", ["truncated", "empty", "longer"])
@pytest.mark.parametrize("name", ["plain", "crc32c", "zstd", "gzip", "big-endian", "v2", "v2 in F order", "shards"])
def test_a_chunk_of_another_size_is_damaged_and_named(save, name, how):
    url = save("A", NUMBERS, (4, 10), **CODECS[name] | ({"shards": (8, 10)} if name == "shards" else {}))
    damage(chunk(url), how)
    assert letter(url).startswith(f"The chunk {chunk(url)}")
    assert "is damaged: " in letter(url)
    assert "Nothing was computed from it" in letter(url)


@pytest.mark.parametrize("name", ["crc32c", "zstd", "gzip", "zstd and crc32c", "v2 gzip", "shards of zstd"])
def test_a_flipped_bit_under_a_checksum_is_damage_and_named(save, name):
    url = save("A", NUMBERS, (4, 10), **CODECS[name] | ({"shards": (8, 10)} if "shards" in name else {}))
    damage(chunk(url), "flipped")
    assert letter(url).startswith(f"The chunk {chunk(url)}")
    assert "is damaged: " in letter(url)


def test_both_checksums_and_both_sizes_are_told(save):
    url = save("A", NUMBERS, (4, 10), compressors=[Crc32cCodec()])
    damage(chunk(url), "flipped")
    assert re.search(r"its CRC-32C is [0-9a-f]{8} and was written as [0-9a-f]{8}\.", letter(url))
    damage(chunk(url), "truncated")
    assert "it holds 316 bytes and has to hold 324." in letter(url)


def test_a_shard_without_length_is_damaged_and_not_zeros(save):
    url = save("A", NUMBERS, (4, 10), shards=(8, 10))
    damage(chunk(url), "empty")
    assert f"The chunk {chunk(url)} is damaged: it holds 0 bytes and its index alone has 36." in letter(url)


def test_chunks_beside_a_damaged_one_are_read(save):
    url = save("A", NUMBERS, (4, 10), compressors=[Crc32cCodec()])
    damage(chunk(url, 1), "flipped")
    np.testing.assert_array_equal(Reader(url, fill_missing=False).read(slice(8, 23), slice(0, 10)), NUMBERS[8:])


# What is no array of numbers


def refusal(url: str) -> str:
    with pytest.raises(BadData) as caught:
        describe(url)
    return str(caught.value)


def test_a_path_where_nothing_is_says_where_relative_paths_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("data/A") == (
        "There is no Zarr array at data/A: nothing is there. "
        f"Relative paths start from the current directory, {tmp_path}."
    )
    assert refusal(f"{tmp_path}/A").endswith("nothing is there. Check the path in the job file.")


def test_a_group_suggests_its_arrays(save, tmp_path):
    zarr.create_group(tmp_path / "data")
    save("data/b", NUMBERS[:, 0])
    save("data/A", NUMBERS)
    assert "It is a group; its arrays are: A, b. Give the path of one of them." in refusal(f"{tmp_path}/data")


def test_a_file_that_is_something_else_is_no_array(tmp_path):
    (tmp_path / "A.csv").write_text("1,2,3\n")
    assert "There is no Zarr array" in refusal(f"{tmp_path}/A.csv")


def test_damaged_metadata_is_said(save):
    url = save("A", NUMBERS)
    (Path(url) / "zarr.json").write_text("{")
    assert f"There is no Zarr array that can be opened at {url}: " in refusal(url)


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [("U3", "<U3"), ("M8[s]", "datetime64"), ("m8[s]", "timedelta64"), ("S3", "S3"), ([("a", "f8")], "a")],
)
def test_what_is_not_a_number_is_refused_with_its_type(tmp_path, dtype, shown):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the types are not in the Zarr specification yet
        zarr.create_array(tmp_path / "A", shape=(3, 2), dtype=np.dtype(dtype), chunks=(3, 2))
        said = refusal(f"{tmp_path}/A")
    assert shown in said
    assert "which is not a number that can be computed with" in said


def test_python_objects_are_refused(tmp_path):
    metadata = {"zarr_format": 2, "shape": [3, 2], "chunks": [3, 2], "dtype": "|O", "fill_value": None, "order": "C",
                "compressor": None, "filters": [{"id": "vlen-utf8"}]}  # fmt: skip
    (tmp_path / "A").mkdir()
    (tmp_path / "A/.zarray").write_text(json.dumps(metadata))
    assert "which is not a number that can be computed with" in refusal(f"{tmp_path}/A")


@pytest.mark.parametrize(("shape", "count"), [((), 0), ((4,), 1), ((4, 3, 2), 3)])
def test_a_matrix_of_another_number_of_dimensions_is_refused(save, shape, count):
    job = LeastSquares(matrix=save("A", np.ones(shape)), rhs=save("b", np.ones(4)))
    with pytest.raises(BadData, match=rf"has {count} dimensions, shape .*; it needs 2 dimensions \(m, n\)"):
        run(job)


def test_addresses_of_an_unknown_kind_are_refused_with_those_that_are_known():
    said = refusal("ftp://host/A")
    assert said.startswith("ftp://host/A cannot be opened: ")
    assert said.endswith("Give a path, or a URL that starts with s3://, gs://, az:// or https://.")


# Telling that a chunk was written again


def test_the_identity_changes_with_any_chunk_of_its_region_and_with_no_other(save):
    url = save("A", NUMBERS, (4, 3))
    window, region = (slice(0, 23), slice(0, 10)), (slice(4, 8), slice(0, 10))

    def identity() -> int:
        return Reader(url, fill_missing=False).identity(*region, within=window)

    before = identity()
    zarr.open_array(url)[0:4] = 1
    assert identity() == before
    zarr.open_array(url)[4, 9] = 1
    assert identity() != before


def test_identities_of_neighbouring_regions_add_up(save):
    reader = Reader(save("A", NUMBERS, (4, 3)), fill_missing=False)
    window = slice(2, 21), slice(1, 9)
    parts = [reader.identity(slice(*part), window[1], within=window) for part in ((2, 5), (5, 16), (16, 21))]
    assert sum(parts) % 2**128 == reader.identity(*window, within=window)


# Writing


def test_rows_are_written_in_whole_chunks_and_in_no_other_way(tmp_path):
    staging = Staging(f"{tmp_path}/out", Writer("0123456789ab"), overwrite=False)
    url = staging.create("x", (10, 2), np.float64, (4, 2))
    for start, stop in ((2, 4), (0, 3), (4, 9)):
        with pytest.raises(RunFailed, match=r"are not whole chunks of 4 rows"):
            write_rows(url, start, np.ones((stop - start, 2)))
    write_rows(url, 8, np.ones((2, 2)))
    write_rows(url, 0, np.zeros((8, 2)))
    np.testing.assert_array_equal(open_array(url)[...], np.repeat([0.0, 1.0], [8, 2])[:, None] * [1, 1])
    staging.discard()


def test_chunks_of_zeros_are_written_with_checksums(tmp_path):
    staging = Staging(f"{tmp_path}/out", Writer("0123456789ab"), overwrite=False)
    staging.put("x", np.zeros(5), ("column",))
    staging.commit({})
    assert describe(f"{tmp_path}/out/x").checksums
    np.testing.assert_array_equal(whole(f"{tmp_path}/out/x"), np.zeros((5, 1)))
    assert array_names(f"{tmp_path}/out") == ["x"]
