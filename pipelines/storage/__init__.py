"""Stored arrays and results: the only folder that speaks Zarr and object stores."""

from pipelines.storage.answers import StoreError, first_line
from pipelines.storage.arrays import ArrayInfo, array_names, describe, local_path, open_array, read_text
from pipelines.storage.notes import Notes
from pipelines.storage.parts import flush_part, part_identity, whole_identity, write_columns, write_rows
from pipelines.storage.places import clean, copy_result, leftovers, outputs_at, sweep
from pipelines.storage.reader import Reader, reader
from pipelines.storage.scratch import Scratch
from pipelines.storage.staging import Staging, check_output
from pipelines.storage.writers import Writer, checkpoints_of

__all__ = [
    "ArrayInfo",
    "Notes",
    "Reader",
    "Scratch",
    "Staging",
    "StoreError",
    "Writer",
    "array_names",
    "check_output",
    "checkpoints_of",
    "clean",
    "copy_result",
    "describe",
    "first_line",
    "flush_part",
    "leftovers",
    "local_path",
    "open_array",
    "outputs_at",
    "part_identity",
    "read_text",
    "reader",
    "sweep",
    "whole_identity",
    "write_columns",
    "write_rows",
]
