"""A YAML file as plain values, each with the line it stands on; the traps of YAML closed.

Only the core of YAML 1.2 is read: `no` and `12:30:00` are text, `010` is 10, `1e-8` is a number. Keys that
stand twice, anchors and aliases, and tags are faults.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from pipelines.errors import JobFileError
from pipelines.units import format_bytes

MOST_BYTES = 2**20
MOST_DEPTH = 20

Place = tuple[str | int, ...]

_CONSTANTS = dict.fromkeys(("", "~", "null", "Null", "NULL"), None) | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,400}")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """What a file says, and where."""

    name: str
    """What errors call it: the path as the user wrote it."""
    value: Any
    """Dicts, lists, text, numbers, true and false, None."""
    places: dict[Place, str]
    """FILE:LINE, or the override, of each value."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the text itself, one line each."""

    def where(self, place: Place) -> str:
        """FILE:LINE of a value, or of the nearest one around it."""
        while place not in self.places and place:
            place = place[:-1]
        return self.places.get(place, self.name)


def read_document(path: str | Path) -> Document:
    """The values of a YAML file, with their lines.

    Raises:
        JobFileError: the file is not there, too large, not text, or not YAML.
    """
    return parse_document(_read_text(Path(path)), str(path))


def parse_document(text: str, name: str) -> Document:
    """The values of YAML text, with their lines; name is what errors call it."""
    reader = _Reader(text, name)
    try:
        value = reader.read()
    except MarkedYAMLError as error:
        raise JobFileError(f"{name}:{_line_of(error)}: {_in_plain_words(error)}") from None
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise JobFileError(f"{name}: is not YAML text ({reason}); needed a text file") from None
    return Document(name, value, reader.places, reader.faults)


def parse_value(text: str) -> Any:
    """One value, by the same rules as in a file.

    Raises:
        JobFileError: it is not YAML; the message has no place.
    """
    reader = _Reader(text, "")
    try:
        value = reader.read()
    except YAMLError as error:
        raise JobFileError(_in_plain_words(error)) from None
    if reader.faults:
        raise JobFileError(reader.faults[0].partition(": ")[2])
    return value


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise JobFileError(f"{path}: there is no such file.{_neighbour(path)}") from None
    except IsADirectoryError:
        raise JobFileError(f"{path}: is a directory; needed a YAML file") from None
    except OSError as error:
        raise JobFileError(f"{path}: cannot be read ({error.strerror}); needed a readable YAML file") from None
    if len(data) > MOST_BYTES:
        raise JobFileError(f"{path}: is larger than {format_bytes(MOST_BYTES)}, the most that such a file may hold")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobFileError(
            f"{path}:{line}: is not UTF-8 text (byte 0x{data[error.start]:02x} at position {error.start}); "
            "save the file as UTF-8"
        ) from None


def _neighbour(path: Path) -> str:
    """A file beside it with nearly the same name, as a question."""
    import difflib

    names = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f' Did you mean "{path.parent / near[0]}"?' if near else ""


def _line_of(error: MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _in_plain_words(error: YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "'\\t'" in problem:
        return "found a tab at the start of a line or value; YAML needs spaces"
    if "mapping values are not allowed" in problem:
        return 'found a second ":" in one line; put text that holds ": " between quotes'
    if "but found another document" in problem:
        return "found a second document after ---; needed one"
    context = getattr(error, "context", None)
    return f"is not YAML: {problem}" + (f" {context}" if context else "")


class _Reader:
    """Builds values from the events of the parser: no objects, no aliases, no silent last-wins."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.places: dict[Place, str] = {}
        self.faults: list[str] = []
        self._events: Iterator[Event] = iter(YAML(typ="safe", pure=True).parse(text))

    def read(self) -> Any:
        value = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fault(event, "found a second document after ---; needed one")
                    break
                value = self._value(next(self._events), ())
        return value

    def _value(self, event: Event, place: Place) -> Any:
        self.places.setdefault(place, self._where(event))
        self._refuse_indirection(event)
        if len(place) > MOST_DEPTH:
            raise JobFileError(f"{self._where(event)}: found more than {MOST_DEPTH} levels of nesting")
        if isinstance(event, MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(place)
        return _scalar(event) if isinstance(event, ScalarEvent) else None

    def _mapping(self, place: Place) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key_event := next(self._events), MappingEndEvent):
            key = self._key(key_event)
            if key in mapping:
                line = self.places[(*place, key)].rpartition(":")[2]
                self._fault(key_event, f'found "{key}" a second time; the first is on line {line}. Keep one of them')
                self._value(next(self._events), (*place, key))
            else:
                self.places[(*place, key)] = self._where(key_event)
                mapping[key] = self._value(next(self._events), (*place, key))
        return mapping

    def _key(self, event: Event) -> str:
        self._refuse_indirection(event)
        if isinstance(event, ScalarEvent):
            return str(event.value)
        raise JobFileError(f"{self._where(event)}: found a list or mapping as a key; needed text")

    def _sequence(self, place: Place) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._value(event, (*place, len(items))))
        return items

    def _refuse_indirection(self, event: Event) -> None:
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, AliasEvent):
            self._fault(event, f"found the alias *{anchor}; write the value out")
        elif anchor:
            self._fault(event, f"found the anchor &{anchor}; write the value out where it is needed")
        if tag:
            self._fault(event, f"found the tag {tag}; needed plain values, without tags")

    def _where(self, event: Event) -> str:
        return f"{self.name}:{event.start_mark.line + 1}"

    def _fault(self, event: Event, text: str) -> None:
        self.faults.append(f"{self._where(event)}: {text}")


def _scalar(event: ScalarEvent) -> Any:
    """The value of a scalar by YAML 1.2's core rules; quoted and block scalars are text."""
    text = str(event.value)
    if event.style in ("'", '"', "|", ">"):
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _REAL.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan")) if "n" in text.lower() else float(text)
    return text
