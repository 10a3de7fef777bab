"""What pydantic found wrong, as one-line letters: where it stands, what was found, what is needed."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipelines.document import Document, Place
from pipelines.fields import redacted

_NEEDED = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping (name: value)",
    "model_attributes_type": "a mapping (name: value)",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "missing": "a value",
}


_KINDS = {name for name in _NEEDED if name.endswith(("_type", "_parsing"))} | {"literal_error", "needed", "too_short"}
"""Faults of a value that is not of one kind, and may be of another."""

LEFT_OUT = "left_out"
"""A field that the file does not give, and whose default does not go with the others."""


def _left_out(value: Any, fault: Mapping[str, Any]) -> bool:
    return fault["type"] == "needed" and len(fault["loc"]) == 1 and fault["loc"][0] not in value


def describe_faults(error: ValidationError, document: Document, model: type[BaseModel]) -> list[str]:
    """One line for each place that is wrong, in the order of the fields."""
    grouped: dict[Place, list[Mapping[str, Any]]] = {}
    for fault in error.errors(include_url=False):
        if _left_out(document.value, fault):
            fault["type"] = LEFT_OUT
        grouped.setdefault(_place_in(document.value, fault), []).append(fault)
    grouped = {place: faults for place, faults in grouped.items() if not _is_of_a_part(place, faults, grouped)}
    return [_letter(place, faults, document, model) for place, faults in grouped.items()]


def _is_of_a_part(place: Place, faults: list[Mapping[str, Any]], grouped: Mapping[Place, Any]) -> bool:
    """Whether a union was not met because of a part of the value, which has a letter of its own."""
    inner = any(other[: len(place)] == place != other for other in grouped)
    return inner and all(fault["type"] in _KINDS for fault in faults)


def _letter(place: Place, faults: list[Mapping[str, Any]], document: Document, model: type[BaseModel]) -> str:
    where = document.where(place if faults[0]["type"] not in ("missing", LEFT_OUT) else place[:-1])
    return f"{where}: {dotted(place)}: {_what_is_wrong(place, faults, document, model)}"


def _what_is_wrong(place: Place, faults: list[Mapping[str, Any]], document: Document, model: type[BaseModel]) -> str:
    first = faults[0]
    if first["type"] == "extra_forbidden":
        names = [name for owner in models_at(model, place[:-1]) for name in owner.model_fields]
        return f"there is no such field. {nearest(str(place[-1]), names)}"
    if first["type"] == "letter":
        return str(first["msg"])
    if first["type"] == "missing":
        return missing(str(place[-1]), models_at(model, place[:-1]))
    if first["type"] == LEFT_OUT:
        return f"is missing; needed {_either([str(fault['msg']) for fault in faults])}"
    names = [name for fault in faults for name in _choices(fault)]
    needs = names + [_need(fault) for fault in faults if not _choices(fault)]
    found = value_at(document.value, place)
    near = _near(found, names) if isinstance(found, str) else None
    return f"found {shown(found)}; needed {_either(needs)}" + (f'. Did you mean "{near}"?' if near else "")


def missing(name: str, owners: Iterable[type[BaseModel]]) -> str:
    """What to say of a field that is not there."""
    meaning = [owner.model_fields[name].description or "" for owner in owners if name in owner.model_fields]
    return f"is missing; needed: {meaning[0]}" if meaning and meaning[0] else "is missing"


def _choices(fault: Mapping[str, Any]) -> list[str]:
    """The names among which a value had to be."""
    expected = fault.get("ctx", {}).get("expected_tags") or fault.get("ctx", {}).get("expected", "")
    return re.findall(r"'([^']*)'", str(expected))


def _need(fault: Mapping[str, Any]) -> str:
    context = fault.get("ctx", {})
    if fault["type"] == "needed":
        return str(fault["msg"])
    if fault["type"] == "value_error":
        return str(context["error"]).rpartition("; needed ")[2]
    phrase = _NEEDED.get(fault["type"])
    return phrase.format(**context) if phrase else str(fault["msg"])


def nearest(word: str, names: list[str]) -> str:
    """'Did you mean "rows"?', or all the names when none is near."""
    near = _near(word, names)
    return f'Did you mean "{near}"?' if near else f"Known: {', '.join(names)}"


def _near(word: str, names: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.5)), None)


def _either(choices: list[str]) -> str:
    choices = list(dict.fromkeys(choices))
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def _place_in(value: Any, fault: Mapping[str, Any]) -> Place:
    """The fault's place in the document: without the names that pydantic gives to the members of a union."""
    place: list[str | int] = []
    for part in fault["loc"]:
        held = isinstance(value, Mapping) and part in value
        if held or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            place.append(part)
            value = value[part]
    if fault["type"] in ("missing", LEFT_OUT):
        place.append(fault["loc"][-1])
    place += fault.get("ctx", {}).get("below", ())
    tag = fault.get("ctx", {}).get("tag")
    if tag is not None and isinstance(value, Mapping):
        place += [key for key, held in value.items() if held == tag][:1]
    return tuple(place)


def value_at(value: Any, place: Place) -> Any:
    """The value at a place of nested dicts and lists."""
    for part in place:
        value = value[part]
    return value


def dotted(place: Place) -> str:
    """A place as people write it: method.block, columns[3]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
        return text if len(text) <= 60 else f"a list of {len(value)} values"
    if isinstance(value, str):
        value = redacted(value)
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return str(value)


def models_at(model: type[BaseModel], place: Place) -> list[type[BaseModel]]:
    """The models whose fields may stand at a place."""
    owners = [model]
    for part in place:
        if isinstance(part, str):
            fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
            owners = [inner for found in fields for inner in _models_in(found.annotation)]
    return owners


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
