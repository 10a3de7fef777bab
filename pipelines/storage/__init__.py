"""Stored arrays and results: the only folder that speaks Zarr and object stores."""

from pipelines.storage.arrays import ArrayInfo, array_names, describe, local_path, open_array, read_text
from pipelines.storage.notes import Notes
from pipelines.storage.places import copy_result, sweep
from pipelines.storage.reader import Reader, reader
from pipelines.storage.staging import Staging, check_output, write_columns, write_rows

__all__ = [
    "ArrayInfo",
    "Notes",
    "Reader",
    "Staging",
    "array_names",
    "check_output",
    "copy_result",
    "describe",
    "local_path",
    "open_array",
    "read_text",
    "reader",
    "sweep",
    "write_columns",
    "write_rows",
]
