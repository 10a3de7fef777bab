"""What a span has made, kept for a later run: a state and a tally in a file that says what it belongs to.

A file is named by a digest of all that the state follows from: the pass with its numbers, the system of rows with the
metadata of its arrays, the span, and the versions that decide the bits.  So nothing is looked up by when or by whom it
was made, and what another job or another cut left behind is simply not found.  Inside stands the name once more, and
a digest of the whole: what was torn, damaged or put there by somebody else counts as not there.

What can change behind a name's back is looked at when a state is loaded: the chunks that were read (a change is an
error) and those that were written (where they are gone or others, the span is done again).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from pipelines import storage
from pipelines.addresses import Address
from pipelines.errors import InputChanged
from pipelines.matrix import NAMES, InMemory, Span, Stored, System, Tally
from pipelines.passes.gram import packed, unpacked
from pipelines.passes.output import Target
from pipelines.synthetic import Synthetic, SyntheticRhs

FORM = b"tallgrass-checkpoint-3\n"
DIGEST_BYTES = 32
ALIGNED = 64
DECIDE_BITS = ("numpy", "scipy", "zarr", "numcodecs")
SOURCES = tuple(zip(("A", "b", "weights"), NAMES, strict=True))
"""The fields of a System that rows come from, and what people call them."""
FOUND_AGAIN = Stored | InMemory | Synthetic | SyntheticRhs
"""Sources that are what they were: stored ones are looked at, and the others are part of a checkpoint's name."""
Made = tuple[Any, Tally]


@dataclass(frozen=True)
class Checkpoints:
    """Where the spans of one pass leave what they made; it travels with the tasks."""

    address: Address
    step: str
    """Digest of the pass and its system."""
    run: str
    targets: tuple[Target, ...]
    """What the pass writes."""
    own: str
    """What is below this was written by the run itself, such as a matrix that it reads again to measure it."""

    def load(self, system: System, span: Span) -> Made | None:
        """What the span made in an earlier run, if that can be used.

        Raises:
            InputChanged: what it read has changed since.
        """
        name = self._name(span)
        try:
            raw = storage.Scratch(self.address).read(name)
        except (OSError, storage.StoreError):
            return None
        found = None if raw is None else decoded(raw, name)
        if found is None:
            return None
        (state, tally), read = found
        now = system.touched(span.start, span.stop)
        changed = [source for source, a, b in zip(SOURCES, read, now, strict=True) if a != b]
        if changed:
            if all(self._is_own(getattr(system, source)) for source, _ in changed):
                return None
            raise InputChanged(_changed(system, span, changed))
        if tally.wrote != self._written(storage.part_identity, span):
            return None
        return state, replace(tally, loaded=1)

    def _is_own(self, source: Any) -> bool:
        return isinstance(source, Stored) and f"{source.info.url}/".startswith(f"{self.own}/")

    def make(self, system: System, span: Span, walk: Callable[[], Made]) -> Made:
        """What the span makes, kept; where that cannot be done the tally says why, and the run goes on.

        The chunks that it reads are looked at before it reads them: what is written meanwhile counts as written later.
        """
        read = system.touched(span.start, span.stop)
        state, tally = walk()
        tally = replace(tally, wrote=self._written(storage.flush_part, span))
        if tally.bad:
            return state, tally
        try:
            name = self._name(span)
            storage.Scratch(self.address).write(name, *encoded((state, tally), name, read))
        except (OSError, storage.StoreError) as error:
            why = getattr(error, "strerror", None) or storage.first_line(error)
            return state, replace(tally, unsaved=why)
        return state, tally

    def _written(self, ask: Callable[..., int], span: Span) -> int:
        """The identity of the chunks that the span fills."""
        parts = (ask(one.url, self.run, span.start, span.stop, columns=one.columns) for one in self.targets)
        return sum(parts) % 2**128

    def _name(self, span: Span) -> str:
        return hashlib.blake2b(f"{self.step} {span}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Place:
    """Where a run keeps what its spans made, and where it writes its result meanwhile."""

    address: Address
    own: str


def checkpoints(place: Place | None, run: str, step: Any, system: System) -> Checkpoints | None:
    """Those of a pass over a system; None without a place, and for dask arrays, which may be anything each time."""
    sources = [getattr(system, name) for name, _ in SOURCES]
    if place is None or not all(source is None or isinstance(source, FOUND_AGAIN) for source in sources):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in told([_environment(), step, system]):
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return Checkpoints(place.address, digest.hexdigest(), run, tuple(_targets(step)), place.own)


def _code() -> str:
    """Our own code, as it is when it is imported."""
    code = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


CODE = _code()


@lru_cache
def _environment() -> tuple[str, ...]:
    """What decides the bits besides the data: our code, the packages that it calculates with, the processor's BLAS."""
    pools = [one for one in threadpool_info() if one["user_api"] == "blas"]
    blas = {f"{one['prefix']} {one['version']} {one.get('architecture')}" for one in pools}
    return CODE, *(f"{name} {version(name)}" for name in DECIDE_BITS), *sorted(blas)


def told(value: Any) -> Iterator[bytes | memoryview]:
    """All that a value is, piece by piece: equal values, and only they, give equal pieces."""
    if isinstance(value, Stored):
        value = replace(value, run="")
    if isinstance(value, np.ndarray):
        order = _order(value)
        yield f"array {value.dtype.str} {value.shape} {order}".encode()
        yield _bytes(value, order)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        for one in fields(value):
            if one.init:
                yield one.name.encode()
                yield from told(getattr(value, one.name))
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for part in value:
            yield from told(part)
    elif value is None or isinstance(value, bool | int | float | complex | str | np.dtype | np.generic):
        yield f"{type(value).__name__} {value!s}".encode()
    else:
        raise TypeError(f"{type(value)} is nothing that a pass or a system may hold")


def _targets(value: Any) -> Iterator[Target]:
    """Where a pass writes."""
    if isinstance(value, Target):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _targets(part)
    elif is_dataclass(value) and not isinstance(value, type | np.ndarray):
        for one in fields(value):
            if one.init:
                yield from _targets(getattr(value, one.name))


def _order(array: np.ndarray) -> Any:
    """How an array lies in memory; others are copied into C order."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _bytes(array: np.ndarray, order: Any) -> memoryview:
    """An array as it lies in memory, without a copy where it is contiguous."""
    return memoryview(array.ravel(order).view(np.uint8)) if array.size else memoryview(b"")


def encoded(made: Made, name: str, read: list[int]) -> list[bytes | memoryview]:
    """FORM, the length of the header, the header, the arrays, and a digest of all before it."""
    arrays: list[np.ndarray] = []
    header = json.dumps({"name": name, "made": _described(made, arrays), "read": read}).encode()
    parts: list[bytes | memoryview] = [FORM, len(header).to_bytes(8, "little"), header]
    size = sum(map(len, parts))
    for array in arrays:
        parts.append(bytes(-size % ALIGNED))
        parts.append(_bytes(array, _order(array)))
        size += len(parts[-2]) + array.nbytes
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def _described(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON; arrays are put aside."""
    if isinstance(value, np.ndarray) and _is_triangle(value):
        arrays.append(packed(value))
        return {"triangle": value.dtype.str, "columns": len(value)}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": value.dtype.str, "shape": list(value.shape), "order": _order(value)}
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: _described(getattr(value, one.name), arrays) for one in fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": held}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_described(part, arrays) for part in value]}
    if isinstance(value, Address):
        return {"address": str(value), "options": value.options}
    if isinstance(value, np.generic):
        return _described(np.asarray(value), arrays) | {"scalar": True}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, float):
        return {"float": value.hex()}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value)} is nothing that a state may hold")


def _is_triangle(array: np.ndarray) -> bool:
    """Whether an array in column order has nothing below its diagonal, not even the sign of a zero."""
    if array.ndim != 2 or len(set(array.shape)) != 1 or _order(array) != "F" or array.dtype.kind not in "fc":
        return False
    return not any(array[j + 1 :, j].view(np.uint8).any() for j in range(len(array) - 1))


def decoded(raw: bytes, name: str) -> tuple[Made, list[int]] | None:
    """What was encoded, and what was read for it; None for anything that is not whole, or not of that name."""
    body, digest = memoryview(raw)[:-DIGEST_BYTES], raw[-DIGEST_BYTES:]
    if not raw.startswith(FORM) or hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != digest:
        return None
    start = len(FORM) + 8
    stop = start + int.from_bytes(body[len(FORM) : start], "little")
    try:
        header = json.loads(bytes(body[start:stop]))
        if header["name"] != name:
            return None
        made = _rebuilt(header["made"], _Arrays(body, stop))
        return (made[0], made[1]), header["read"]
    except Exception:  # noqa: BLE001  # whole, and yet nothing that we wrote
        return None


class _Arrays:
    """The arrays of a file, one after the other."""

    def __init__(self, body: memoryview, at: int) -> None:
        self._body, self._at = body, at

    def next(self, dtype: np.dtype[Any], shape: list[int], order: Any) -> np.ndarray:
        """An array of its own, that may be changed."""
        count = int(np.prod(shape))
        self._at += -self._at % ALIGNED
        flat = np.frombuffer(self._body, dtype, count, self._at) if count else np.empty(0, dtype)
        self._at += count * dtype.itemsize
        return flat.reshape(shape, order=order).copy(order)


def _rebuilt(told: Any, arrays: _Arrays) -> Any:
    if not isinstance(told, dict):
        return told
    if "array" in told:
        array = arrays.next(np.dtype(told["array"]), told["shape"], told["order"])
        return array[()] if "scalar" in told else array
    if "triangle" in told:
        p = told["columns"]
        return unpacked(arrays.next(np.dtype(told["triangle"]), [p * (p + 1) // 2], "C"), p)
    if "class" in told:
        module, name = told["class"]
        held = {key: _rebuilt(value, arrays) for key, value in told["fields"].items()}
        return _class(module, name)(**held)
    if "float" in told:
        return float.fromhex(told["float"])
    if "complex" in told:
        return complex(*map(float.fromhex, told["complex"]))
    if "address" in told:
        return Address(told["address"], told["options"])
    ((kind, parts),) = told.items()
    return {"tuple": tuple, "list": list}[kind](_rebuilt(part, arrays) for part in parts)


def _class(module: str, name: str) -> Any:
    """A class of data of ours, and nothing else that a file may name."""
    found = getattr(import_module(module), name) if module.startswith("pipelines.") else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise TypeError(f"{module}.{name} is no state")
    return found


def _changed(system: System, span: Span, changed: list[tuple[str, str]]) -> str:
    """The letter about an input that is not what it was."""
    what = " and the ".join(name for _, name in changed)
    source = getattr(system, changed[0][0])
    where = getattr(getattr(source, "info", None), "url", "this process")
    by = "the content" if getattr(source, "content", False) else "the size or the time"
    return (
        f"The {what} at {where} changed since this job was interrupted: chunks of rows {span.start:,} to "
        f"{span.stop:,}, which were read then, are others now or gone. What was done belongs to the old "
        f"numbers ({by} of each chunk tells). Begin anew with the new ones: tallgrass run --restart, or "
        "`checkpoints: false` in the job"
    )
