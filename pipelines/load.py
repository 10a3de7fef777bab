"""Job files, cluster files: from YAML to a validated model, or to letters that say which line to change."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from pipelines.document import Document, Place, parse_value, read_document
from pipelines.errors import JobFileError
from pipelines.faults import describe_faults, dotted, missing, nearest, shown
from pipelines.fields import Model, redacted
from pipelines.jobs import KINDS, job_model

if TYPE_CHECKING:
    from pipelines.jobs import Job

SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> "Job":
    """The job that a file describes; overrides are `place=value` texts, applied before it is validated.

    Raises:
        JobFileError: a line for each thing that is wrong, with its file, line and dotted place.
    """
    return _job(apply_overrides(read_document(path), overrides))


def _job(document: Document) -> "Job":
    asked = document.value.get("kind") if isinstance(document.value, dict) else None
    return _loaded(document, {kind: job_model(kind) if kind == asked else None for kind in KINDS}, ("output",))


def job_of(value: Any, name: str = "the job") -> "Job":
    """The job that nested dicts and lists describe, as `model_dump(mode="json")` gives them.

    Raises:
        JobFileError: a line for each thing that is wrong, with its dotted place.
    """
    return _job(Document(name, value, {}))


def load_file(path: str | Path, models: Any, overrides: Sequence[str] = (), needed: Sequence[str] = ()) -> Any:
    """What a YAML file describes, as one of the models, told apart by `kind`.

    `models` is a model or a union of them; `needed` names fields that a file must give, and Python need not.

    Raises:
        JobFileError: a line for each thing that is wrong, with its file, line and dotted place.
    """
    document = apply_overrides(read_document(path), overrides)
    return _loaded(document, dict(kinds_of(models)), needed)


def _loaded(document: Document, kinds: "dict[str, type[Model] | None]", needed: Sequence[str]) -> Any:
    if not isinstance(document.value, dict):
        found = "an empty file" if document.value is None else shown(document.value)
        raise JobFileError(f'{document.where(())}: found {found}; needed fields, first "kind: {next(iter(kinds))}"')
    return _validated(document, kinds, needed)


def _validated(document: Document, kinds: "dict[str, type[Model] | None]", needed: Sequence[str]) -> Model:
    model = kinds.get(str(document.value.get("kind")))
    if model is None:
        raise JobFileError("\n".join([*document.faults, _unknown_kind(document, list(kinds))]))
    faults = list(document.faults)
    try:
        result = model.model_validate(document.value)
    except ValidationError as error:
        faults += describe_faults(error, document, model)
    faults += [
        f"{document.where(())}: {name}: {missing(name, [model])}"
        for name in needed
        if name in model.model_fields and document.value.get(name) is None
    ]
    if faults:
        raise JobFileError("\n".join(sorted(faults, key=_line)))
    return result


def _line(fault: str) -> int:
    """The line that a fault names; those of overrides come first."""
    found = re.search(r":(\d+): ", fault)
    return int(found[1]) if found and not fault.startswith("--set") else 0


def _unknown_kind(document: Document, kinds: list[str]) -> str:
    if "kind" not in document.value:
        return f"{document.where(())}: kind: is missing; needed one of: {', '.join(kinds)}"
    found, where = document.value["kind"], document.where(("kind",))
    return f"{where}: kind: found {shown(found)}, no known kind. {nearest(str(found), kinds)}"


def kinds_of(models: Any) -> dict[str, type[Model]]:
    """The models of a union by the value of their `kind`."""
    if isinstance(models, type) and issubclass(models, Model):
        return {get_args(models.model_fields["kind"].annotation)[0]: models}
    members = [part for part in get_args(models) if get_args(part) or isinstance(part, type)]
    return {kind: model for part in members for kind, model in kinds_of(part).items()}


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """The document with `place=value` texts applied, in order; their places are named after them.

    Raises:
        JobFileError: an override is not `place=value`, or its place cannot be.
    """
    value, places, faults = document.value, dict(document.places), list(document.faults)
    for override in overrides:
        place, new = _parsed_override(override)
        label = _label(override, place)
        value = _with_value(value, place, new, label)
        places = {known: where for known, where in places.items() if known[: len(place)] != place} | {place: label}
    return Document(document.name, value, places, faults)


def _label(override: str, place: Place) -> str:
    """What errors call an override: without a value that may be a secret."""
    secret = "storage_options" in place
    return f"--set {override.partition('=')[0]}=***" if secret else f"--set {redacted(override)}"


def _parsed_override(override: str) -> tuple[Place, Any]:
    path, equals, text = override.partition("=")
    parts = re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)
    place: Place = tuple(int(index) if index else name.strip() for name, index in parts)
    if not equals or not place or dotted(place) != path.strip():
        raise JobFileError(f"--set {override}: needed place=value, such as rtol=1e-10 or require.rank=full")
    try:
        return place, parse_value(text)
    except JobFileError as error:
        raise JobFileError(f"--set {override}: {dotted(place)}: {error}") from None


def _with_value(value: Any, place: Place, new: Any, label: str, above: Place = ()) -> Any:
    """A copy of nested dicts and lists with one value set; what is missing on the way becomes a mapping."""
    if not place:
        return new
    part, rest = place[0], place[1:]
    if isinstance(part, int):
        items = list(value) if isinstance(value, list) else [] if value is None else None
        if items is None or part > len(items):
            raise JobFileError(f"{label}: {dotted(above)}: found {shown(value)}; needed a list that reaches [{part}]")
        inner = items[part] if part < len(items) else None
        return [*items[:part], _with_value(inner, rest, new, label, (*above, part)), *items[part + 1 :]]
    if not isinstance(value, dict | None):
        raise JobFileError(f"{label}: {dotted(above)}: found {shown(value)}, which has no fields; set it as a whole")
    return (value or {}) | {part: _with_value((value or {}).get(part), rest, new, label, (*above, part))}


def job_schema() -> dict[str, Any]:
    """The JSON schema of job files, for editors and for checks elsewhere."""
    from pydantic import TypeAdapter  # which `check` has no need of

    from pipelines.jobs import Job

    schema = TypeAdapter(Job).json_schema()
    for owner in [schema, *schema.get("$defs", {}).values()]:
        if "kind" in owner.get("properties", {}):
            owner["required"] = ["kind", *owner.get("required", []), "output"]
    return {"$schema": SCHEMA} | schema | {"title": "A Tallgrass job"}
