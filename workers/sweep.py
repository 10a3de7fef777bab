"""One job file, many jobs: `--set ridge=0.1,1,10` is three of them, each with an output of its own."""

import itertools
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines.document import read_document
from pipelines.errors import JobFileError
from pipelines.load import apply_overrides

MOST = 1000
"""Jobs that one command submits."""


def variants(file: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job: all combinations of values; what varies becomes part of the output's name.

    Raises:
        JobFileError: two of them would have the same output, or there are more than MOST.
    """
    choices = [_choices(override) for override in overrides]
    varied = [index for index, chosen in enumerate(choices) if len(chosen) > 1]
    if not varied:
        return [list(overrides)]
    combinations = list(itertools.islice(itertools.product(*choices), MOST + 1))
    if len(combinations) > MOST:
        raise JobFileError(f"These values make more than {MOST:,} jobs. Submit them in parts.")
    if any(override.partition("=")[0].strip() == "output" for override in overrides):
        return [list(chosen) for chosen in combinations]
    output = _output(file, overrides)
    return [[*chosen, f'output="{_named(output, [chosen[i] for i in varied])}"'] for chosen in combinations]


def _choices(override: str) -> list[str]:
    """`place=a,b` as place=a and place=b; commas within brackets and quotes belong to a value."""
    place, equals, text = override.partition("=")
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return (
        [f"{place}{equals}{part}" for part in parts] if equals and all(part.strip() for part in parts) else [override]
    )


def _output(file: str, overrides: Sequence[str]) -> str:
    value = apply_overrides(read_document(file), overrides).value
    output = value.get("output") if isinstance(value, dict) else None
    return output if isinstance(output, str) else ""


def _named(output: str, chosen: Sequence[str]) -> str:
    """results/x.zarr with ridge=0.1 is results/x-ridge=0.1.zarr."""
    if not output:
        return output
    tag = "-".join(text.replace(" ", "").replace("/", "_").replace('"', "") for text in chosen)
    head, slash, last = output.rstrip("/").rpartition("/")
    path = PurePosixPath(last)
    return f"{head}{slash}{path.stem}-{tag}{path.suffix}"
