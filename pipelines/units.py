"""Bytes and seconds, between what people write ("4 GiB", "12h30m") and numbers."""

import math
import re

_BYTES = {"b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def parse_bytes(value: str | float) -> int:
    """A number of bytes, from "4 GiB", "500 MB" or a plain number.

    Raises:
        ValueError: it is not an amount of memory, or not one that can only be read in one way.
    """
    number = _plain_number(value)
    if number is None:
        number = _with_unit(str(value))
    if number is None or not (math.isfinite(number) and number >= 0):
        raise ValueError(f'found {_shown(value)}; needed an amount of memory, such as "4 GiB" or "500 MB"')
    return round(number)


def _with_unit(text: str) -> float | None:
    match = _PART.fullmatch(text.strip().lower())
    if match is None:
        return None
    number, unit = float(match[1]), match[2]
    if unit in tuple("kmgtp"):
        raise ValueError(
            f'found "{text}", which can be read in two ways; needed '
            f'"{match[1]} {_spelled(unit + "ib")}" (powers of 1024) or '
            f'"{match[1]} {_spelled(unit + "b")}" (of 1000)'
        )
    return number * _BYTES[unit] if unit in _BYTES else None


def _spelled(unit: str) -> str:
    """The unit as it is usually written: GiB, kB."""
    return "kB" if unit == "kb" else unit.upper().replace("IB", "iB")


def format_bytes(count: float) -> str:
    """Bytes for a person, in three digits: "4.0 GiB", "212 MiB"."""
    return _scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"])


def format_rate(bytes_per_second: float) -> str:
    """A speed for a person, in powers of 1000 as disks and networks give it: "1.2 GB/s"."""
    return _scaled(bytes_per_second, 1000, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])


def format_count(count: float, unit: str) -> str:
    """A large count for a person: "2.1 Tflop", "340 Gflop"."""
    return _scaled(count, 1000, [unit, f"k{unit}", f"M{unit}", f"G{unit}", f"T{unit}", f"P{unit}", f"E{unit}"])


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 task", "4,096 tasks"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _scaled(number: float, base: int, units: list[str]) -> str:
    step = 0
    while step < len(units) - 1 and number >= base - 0.5:
        number, step = number / base, step + 1
    return f"{number:.0f} {units[step]}" if step == 0 or number >= 99.95 else f"{number:.1f} {units[step]}"


def parse_seconds(value: str | float) -> float:
    """A time in seconds, from "12h30m", "90s", "500 ms" or a plain number.

    Raises:
        ValueError: it is not a time, or a clock time, which YAML readers take for different numbers.
    """
    number = _plain_number(value)
    if number is None:
        number = _sum_of_parts(str(value).strip().lower())
    if number is None or not (math.isfinite(number) and number >= 0):
        raise ValueError(f'found {_shown(value)}; needed a time with its unit, such as "12h30m" or "90s"')
    return number


def _sum_of_parts(text: str) -> float | None:
    """The seconds in "12h30m": every part has a unit, and the units go down."""
    parts = _PART.findall(text)
    units = [_SECONDS.get(unit, 0) for _, unit in parts]
    whole = _PART.sub("", text) == ""
    if not parts or not whole or 0 in units or units != sorted(set(units), reverse=True):
        return None
    return math.fsum(float(number) * unit for (number, _), unit in zip(parts, units, strict=True))


def format_seconds(seconds: float) -> str:
    """A time for a person: "12 ms", "0.42 s", "4.2 s", "12 min 30 s", "3 h 5 min"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    if whole < 3600:
        return _two_parts(whole, 60, "min", 1, "s")
    if whole < 86400:
        return _two_parts(whole, 3600, "h", 60, "min")
    return _two_parts(whole, 86400, "d", 3600, "h")


def _two_parts(seconds: int, large: int, large_name: str, small: int, small_name: str) -> str:
    count, rest = divmod(seconds, large)
    return f"{count} {large_name}" + (f" {rest // small} {small_name}" if rest >= small else "")


def format_clock(seconds: float) -> str:
    """A time as a clock shows it: "0:03", "12:30", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plain_number(value: str | float) -> float | None:
    """The number that a value is by itself, or None when it carries a unit or is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
