"""An object store that is asked again when it, or the network on the way, fails for a while.

obstore retries a request that is answered with 5xx or 429, or not at all, but gives up within seconds, and does not
repeat most of what breaks while an answer arrives.  Here that goes on for minutes, since a job may have run for hours.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, override
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError as ObstoreError
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from pipelines.addresses import Address
from pipelines.storage.answers import StoreError, letter_of, may_pass

PATIENCE = 180.0
"""Seconds for which a request is repeated: throttling passes within a minute or two, and no_progress_timeout is ten."""
FIRST_PATIENCE = 10.0
"""Seconds for a store that this process has never had an answer of: mostly its address is wrong."""
FIRST_WAIT, MOST_WAIT = 0.5, 15.0
"""Seconds between two tries, which double, each shortened at random by up to a half so that workers spread out."""
_answered: set[tuple[str, Any]] = set()
"""Hosts or buckets, with their endpoints, that this process has had an answer of."""


def stamp_of(meta: Any) -> str:
    """What changes when an object is written again: size and ETag, or time."""
    return f"{meta['size']} {meta['e_tag'] or meta['last_modified']}"


class PatientStore(ObjectStore[Any]):
    """The objects below an address."""

    def __init__(self, store: Any, address: Address, *, patience: float = PATIENCE, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.address, self.patience = address, patience

    @override
    def with_read_only(self, read_only: bool = False) -> "PatientStore":
        return PatientStore(self.store, self.address, patience=self.patience, read_only=read_only)

    # What Zarr asks for

    @override
    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:  # fmt: skip
        ask = super().get
        return await self._insist(key, lambda: ask(key, prototype, byte_range))

    @override
    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        ask, wanted = super().get_partial_values, list(key_ranges)
        return await self._insist(wanted[0][0] if wanted else "", lambda: ask(prototype, wanted))

    @override
    async def exists(self, key: str) -> bool:
        try:
            await self._head(key)
        except FileNotFoundError:
            return False
        return True

    @override
    async def set(self, key: str, value: Buffer) -> None:
        ask = super().set
        await self._insist(key, lambda: ask(key, value))

    @override
    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        ask = super().set_if_not_exists
        await self._insist(key, lambda: ask(key, value))

    @override
    def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        ask = super().list_prefix
        return self._listed(prefix, lambda: ask(prefix))

    @override
    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        ask = super().list_dir
        return self._listed(prefix, lambda: ask(prefix))

    async def _listed(self, prefix: str, ask: Callable[[], AsyncIterator[str]]) -> AsyncGenerator[str, None]:
        async def every() -> list[str]:
            return [name async for name in ask()]

        for name in await self._insist(prefix, every):
            yield name

    # What we ask for besides

    def head(self, key: str) -> Any:
        """Size, time and ETag of an object.

        Raises:
            FileNotFoundError: it is not there.
            StoreError: the store does not say.
        """
        return sync(self._head(key))

    async def _head(self, key: str) -> Any:
        try:
            return await self._insist(key, lambda: obstore.head_async(self.store, key))
        except StoreError:
            await self._insist(key, lambda: obstore.get_range_async(self.store, key, start=0, length=1))
            raise  # that GET went well: answers to HEAD give no reason, and those to GET do

    def read(self, key: str) -> bytes | None:
        """An object, or None where there is none."""

        async def ask() -> bytes:
            return bytes(await (await obstore.get_async(self.store, key)).bytes_async())

        with suppress(FileNotFoundError):
            return sync(self._insist(key, ask))
        return None

    def write(self, key: str, data: bytes) -> None:
        """Put an object there."""
        sync(self._insist(key, lambda: obstore.put_async(self.store, key, data)))

    def remove(self, *keys: str) -> None:
        """Take objects away, where they are."""
        try:
            sync(self._insist("", lambda: obstore.delete_async(self.store, [*keys])))
        except FileNotFoundError:  # said by some stores, also of what an earlier try has removed
            for key in keys:
                with suppress(FileNotFoundError):
                    sync(self._insist(key, lambda key=key: obstore.delete_async(self.store, key)))  # type: ignore[misc]

    def names(self) -> list[str]:
        """The keys of all objects."""
        return list(self.stamps())

    def stamps(self) -> dict[str, str]:
        """The keys of all objects, each with what changes when it is written again."""

        async def every() -> dict[str, str]:
            return {entry["path"]: stamp_of(entry) for entry in await obstore.list(self.store).collect_async()}

        return sync(self._insist("", every))

    async def _insist[T](self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What the store answers in the end."""
        began, tries, wait = time.monotonic(), 0, FIRST_WAIT
        host = urlsplit(self.address).netloc, self.address.options.get("endpoint")
        while True:
            try:
                answer = await ask()
            except FileNotFoundError:
                _answered.add(host)
                raise
            except ObstoreError as error:
                said = str(error)
            else:
                _answered.add(host)
                return answer
            again = re.search(r"after (\d+) retries", said)
            tries += 1 + (int(again[1]) if again else 0)
            unknown = host not in _answered and "status code" not in said
            patience = min(self.patience, FIRST_PATIENCE) if unknown else self.patience
            passed = time.monotonic() - began
            if not may_pass(said) or passed + wait > patience:
                raise StoreError(letter_of(self.address, said, tries, passed), key) from None
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, MOST_WAIT)
