"""How object stores are reached: by their URL, their options, and what this process's environment holds."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import HTTPStore

from pipelines.addresses import Address
from pipelines.errors import BadData
from pipelines.storage.answers import CREDENTIALS, first_line
from pipelines.storage.objects import PATIENCE, PatientStore
from pipelines.stores import looked_up

TIMEOUTS = {"connect_timeout": 5.0, "read_timeout": 30.0, "timeout": 300.0}
"""Seconds to connect, between two pieces of an answer, and in all: a chunk of 64 MB may come at 0.3 MB/s."""
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "web": (),
}
"""Variables that lead to another server than the usual one."""


def open_objects(address: Address) -> PatientStore:
    """The store at a URL.

    Raises:
        BadData: the URL is of no known kind, or what it needs is not there.
        PlanRefused: this process is a server's, and an option is not for its jobs to say.
    """
    config: Any = looked_up(address)
    patience = float(config.pop("retry_timeout", PATIENCE))
    retries: Any = {"retry_timeout": timedelta(seconds=patience)}
    client: Any = _client_options(address, config)
    try:
        if address.store is None:
            raise ValueError("no store of this kind is known")
        if address.store == "web":
            store: Any = HTTPStore.from_url(address, client_options=client, retry_config=retries)
        else:
            store = obstore.store.from_url(address, config=config, client_options=client, retry_config=retries)
    except (ValueError, ObstoreError) as error:
        raise BadData(f"{address} cannot be opened: {first_line(error)}. {_what_opens(address, str(error))}") from None
    return PatientStore(store, address, patience=patience)


def _what_opens(address: Address, said: str) -> str:
    if address.store is None:
        return "Give a path, or a URL that starts with s3://, gs://, az:// or https://."
    if "Missing" in said:
        return f"Set {CREDENTIALS[address.store]}."
    return "Correct the URL or its storage_options."


def _client_options(address: Address, config: dict[str, Any]) -> dict[str, Any]:
    """How the network is used; these options are taken out of the others."""
    named = [
        config.get("endpoint"),
        config.get("base_url"),
        *map(os.environ.get, ENDPOINTS.get(str(address.store), ())),
    ]
    first = next((str(url) for url in (address if address.store == "web" else None, *named) if url), "")
    plain = first.lower().startswith("http://") or bool(config.get("use_emulator"))
    options: dict[str, Any] = {"allow_http": plain}
    for name, seconds in TIMEOUTS.items():
        options[name] = timedelta(seconds=config.pop(name, seconds))
    if "proxy_url" in config:
        options["proxy_url"] = config.pop("proxy_url")
    if "root_certificate" in config:
        options["root_certificate"] = _certificate(address, config.pop("root_certificate"))
    if address.store == "web" and "bearer_token" in config:
        options["default_headers"] = {"authorization": f"Bearer {config.pop('bearer_token')}"}
    return options


def _certificate(address: Address, given: str) -> str:
    if given.startswith("-----BEGIN"):
        return given
    try:
        return Path(given).read_text()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadData(
            f"{address} cannot be opened: the root_certificate {given} cannot be read ({why}). Give a PEM file."
        ) from None
