"""Bytes and seconds: read in one way only, written so that they can be read again."""

import pytest

from pipelines.units import (
    format_bytes,
    format_clock,
    format_count,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4 GiB", 4 * 2**30), ("500 MB", 500_000_000), ("1.5KiB", 1536), (" 2 kB ", 2000), ("0", 0), ("64", 64),
     (64, 64), ("12 b", 12), ("1 pib", 2**50)],
)  # fmt: skip
def test_an_amount_of_memory_is_read_with_its_unit_or_as_plain_bytes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["4 kg", "GiB", "", "-1 GiB", -1, "nan", float("inf"), True, [1], "4 GiB 2 MiB", "1,5 GiB"]
)
def test_what_is_no_amount_of_memory_is_refused_with_examples(text):
    with pytest.raises(ValueError, match='needed an amount of memory, such as "4 GiB" or "500 MB"'):
        parse_bytes(text)


def test_a_letter_that_means_two_units_is_refused_with_both_spellings():
    expected = r'found "4G", which can be read in two ways; needed "4 GiB" \(powers of 1024\) or "4 GB" \(of 1000\)'
    with pytest.raises(ValueError, match=expected):
        parse_bytes("4G")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h30m", 45000), ("90s", 90), ("1d", 86400), ("2 h 5 min", 7500), ("500 ms", 0.5), ("1.5h", 5400), (90, 90),
     ("90", 90), ("0s", 0)],
)  # fmt: skip
def test_a_time_is_read_with_its_units_or_as_plain_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["12:30:00", "30m12h", "5m5m", "1h30", "soon", "", -1, float("nan"), False, None, "3 GiB", "-5s"]
)
def test_what_is_no_time_is_refused_with_examples(text):
    with pytest.raises(ValueError, match='needed a time with its unit, such as "12h30m" or "90s"'):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4 * 2**30, "4.0 GiB"), (212 * 2**20, "212 MiB"),
     (1023.9 * 2**20, "1.0 GiB"), (99.96 * 2**20, "100 MiB")],
)  # fmt: skip
def test_bytes_are_written_in_three_digits(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.012, "12 ms"), (0.42, "0.42 s"), (4.2, "4.2 s"), (42, "42 s"), (59.7, "1 min"), (750, "12 min 30 s"),
     (3599.7, "1 h"), (11_100, "3 h 5 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_seconds_are_written_for_a_person(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("seconds", [0.012, 0.42, 4.2, 42, 750, 7200, 11_100, 183_600])
def test_a_written_time_reads_back_as_the_same_time(seconds):
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds)


def test_speeds_counts_and_clocks_are_written_as_people_know_them():
    assert format_rate(1.24e9) == "1.2 GB/s"
    assert format_count(43.4e9, "flop") == "43.4 Gflop"
    assert [format_clock(seconds) for seconds in (3, 750, 3723)] == ["0:03", "12:30", "1:02:03"]
