"""What stores of arrays and results may be told, in job files too, where no secret stands.

Options are stored with results, kept by the queue and sent to workers. So a secret is in them by name only, as ${NAME}:
an environment variable, looked up where and when the store is opened.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from pipelines.addresses import Address, Value, store_of
from pipelines.errors import BadData, PlanRefused
from pipelines.faults import nearest
from pipelines.fields import letter, place_without_secrets
from pipelines.roots import is_confined
from pipelines.units import parse_seconds

EVERY = ("s3", "gs", "az", "web")


@dataclass(frozen=True)
class Option:
    """What a store may be told."""

    stores: tuple[str, ...]
    """Kinds of store that take it."""
    kind: Literal["text", "flag", "seconds"] = "text"
    secret: bool = False
    """True for what must be given as ${NAME}."""
    free: bool = False
    """True for what a job of a server may give: it leads no credential anywhere."""


_S3, _GS, _AZ = ("s3",), ("gs",), ("az",)
OPTIONS = {
    "region": Option(_S3, free=True),
    "endpoint": Option(("s3", "az")),
    "skip_signature": Option(("s3", "gs", "az"), "flag", free=True),
    "access_key_id": Option(_S3, secret=True),
    "secret_access_key": Option(_S3, secret=True),
    "session_token": Option(_S3, secret=True),
    "virtual_hosted_style_request": Option(_S3, "flag"),
    "request_payer": Option(_S3, "flag"),
    "unsigned_payload": Option(_S3, "flag"),
    "disable_tagging": Option(_S3, "flag"),
    "server_side_encryption": Option(_S3),
    "sse_kms_key_id": Option(_S3),
    "sse_bucket_key_enabled": Option(_S3, "flag"),
    "base_url": Option(_GS),
    "application_credentials": Option(_GS),
    "service_account": Option(_GS),
    "service_account_key": Option(_GS, secret=True),
    "bearer_token": Option(("gs", "web"), secret=True),
    "account_name": Option(_AZ),
    "account_key": Option(_AZ, secret=True),
    "sas_key": Option(_AZ, secret=True),
    "client_id": Option(_AZ),
    "client_secret": Option(_AZ, secret=True),
    "tenant_id": Option(_AZ),
    "token": Option(("s3", "az"), secret=True),
    "authority_host": Option(_AZ),
    "use_emulator": Option(_AZ, "flag"),
    "use_fabric_endpoint": Option(_AZ, "flag"),
    "root_certificate": Option(EVERY),
    "proxy_url": Option(EVERY),
    "connect_timeout": Option(EVERY, "seconds", free=True),
    "read_timeout": Option(EVERY, "seconds", free=True),
    "timeout": Option(EVERY, "seconds", free=True),
    "retry_timeout": Option(EVERY, "seconds", free=True),
}
"""By the names that obstore gives them."""

ALIASES = {
    "anon": "skip_signature",
    "anonymous": "skip_signature",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "endpoint_url": "endpoint",
    "region_name": "region",
    "default_region": "region",
    "requester_pays": "request_payer",
    "sas_token": "sas_key",
    "storage_account_name": "account_name",
    "storage_account_key": "account_key",
    "verify": "root_certificate",
}
"""What users of s3fs, boto3, adlfs and pandas write, where it can mean one thing only."""
PREFIX = re.compile("^(aws|google|azure)_")
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
REGION = re.compile("[A-Za-z0-9-]{1,40}")


def options_of(given: Any) -> dict[str, Value]:
    """Options by their own names, each checked.

    Raises:
        PydanticCustomError: an option is unknown, or is a secret by value.
    """
    if not isinstance(given, Mapping):
        raise letter("needed a mapping of options, such as {region: eu-central-1}")
    found: dict[str, Value] = {}
    for name, value in _flat(given):
        known = _known(str(name))
        if known in found:
            raise letter(f"says the same as another option, {known}. Give one of them", name)
        found[known] = _checked(str(name), known, value)
    return found


def _flat(given: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The options; those of s3fs's client_kwargs beside the others."""
    for name, value in given.items():
        if name == "client_kwargs" and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def _known(name: str) -> str:
    plain = PREFIX.sub("", name.lower())
    plain = ALIASES.get(plain, plain)
    if plain not in OPTIONS:
        raise letter(f"there is no such option of a store. {nearest(plain, list(OPTIONS))}", name)
    return plain


def _checked(name: str, known: str, value: Any) -> Value:
    """A value as its option needs it; the letter about it never repeats it, since it may be a secret."""
    option = OPTIONS[known]
    secret = option.secret or "PRIVATE KEY" in str(value)
    if secret and not (isinstance(value, str) and REFERENCE.fullmatch(value)):
        raise letter(
            "holds a secret, which would be stored with the result. Put the secret into an environment variable, and "
            f"write ${{{known.upper()}}} or another name of one here",
            name,
        )
    if option.kind == "flag":
        if str(value).lower() not in ("true", "false"):
            raise letter("needed true or false", name)
        return str(value).lower() == "true"
    if option.kind == "text":
        return _text(name, known, value)
    return _seconds(name, value)


def _text(name: str, known: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise letter("needed text", name)
    text = str(value)
    if REFERENCE.fullmatch(text):
        return text
    if "${" in text:
        raise letter("needed ${NAME} alone, or text without it", name)
    if known == "region" and not REGION.fullmatch(text):  # it becomes part of the name of a host
        raise letter("needed the name of a region, such as eu-central-1", name)
    place_without_secrets(text, name)
    return text


def _seconds(name: str, value: Any) -> float:
    try:
        return parse_seconds(value)
    except ValueError:
        raise letter('needed a time with its unit, such as "30s"', name) from None


_JSON = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "seconds": {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}]},
}
_SECRET = {"type": "string", "pattern": f"^{REFERENCE.pattern}$"}
StorageOptions = Annotated[
    dict[str, Any],
    BeforeValidator(options_of),
    WithJsonSchema({
        "type": "object",
        "properties": {name: _SECRET if one.secret else _JSON[one.kind] for name, one in OPTIONS.items()},
    }),
]  # fmt: skip
"""Options of an object store, by the names that obstore gives them."""


def looked_up(address: Address) -> dict[str, Value]:
    """The options with what they refer to in this process's environment.

    Raises:
        PlanRefused: this process is a server's, whose jobs may not say that.
        BadData: a variable is not set.
    """
    if is_confined():
        check_free(address.options)
    return {name: _looked_up(address, name, value) for name, value in address.options.items()}


def _looked_up(address: str, name: str, value: Value) -> Value:
    variable = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if variable is None:
        return value
    try:
        return os.environ[variable[1]]
    except KeyError:
        raise BadData(
            f"{address} cannot be opened: storage_options.{name} is ${{{variable[1]}}}, and the process that opens it "
            f"(host {os.uname().nodename}) has no such environment variable. Set it where the job runs and where its "
            "workers are started."
        ) from None


LONGEST_WAIT = 600
"""Seconds of patience with a store that a job may ask of a server, whose workers others wait for."""


def check_free(options: Mapping[str, Any]) -> None:
    """Raises PlanRefused for options by which a job would use, or lead elsewhere, the credentials of a server."""
    free = [name for name, option in OPTIONS.items() if option.free]
    for name, value in options.items():
        if name not in free or "${" in str(value):
            raise PlanRefused(
                f"storage_options.{name} is for whoever runs this server to say, in its environment; a job here may "
                f"give {', '.join(free)}, by value. Leave it out, or run the job yourself: tallgrass run"
            )
        if OPTIONS[name].kind == "seconds" and value > LONGEST_WAIT:
            raise PlanRefused(
                f"storage_options.{name}: {value:,} seconds, and a job on a server may wait {LONGEST_WAIT} for a store "
                f"that does not answer. Give {LONGEST_WAIT} or less, or run the job yourself: tallgrass run"
            )


def check_options(options: Mapping[str, Any], places: Mapping[str, str], *below: str) -> None:
    """Raises PydanticCustomError where a store of these URLs, by the names of their fields, takes no such option."""
    for field, url in places.items():
        store = store_of(url)
        for name in options:
            if store is not None and store not in OPTIONS[name].stores:
                raise letter(
                    f"is no option of {url.partition('://')[0]}://, where the {field} is. Give options beside the "
                    "arrays that take them: {url: ..., storage_options: {...}}",
                    *below, "storage_options", name,
                )  # fmt: skip
