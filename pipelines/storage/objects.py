"""An object store that is asked again when it, or the network on the way, fails for a while.

obstore retries a request that is answered with 5xx or 429, or not at all, but gives up within seconds, and does not
repeat most of what breaks while an answer arrives.  Here that goes on for minutes, since a job may have run for hours.
"""

import asyncio
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, override
from urllib.parse import urlsplit

import numpy as np
import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import PreconditionError
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


PART_BYTES = 4 * 2**20
"""Larger reads are asked for in parts of this size: one connection to a store brings some 50 to 100 MB/s."""
MOST_PARTS = 16
"""Parts on their way at a time, for one read."""
_own = threading.local()


def scratch(what: str, size: int) -> np.ndarray:
    """Memory (size,) of uint8 with anything in it, this thread's until it asks for the same `what` again."""
    held: dict[str, np.ndarray] = _own.__dict__
    if what not in held or held[what].size < size:
        held[what] = np.empty(size, np.uint8)
    return held[what][:size]


class HeadRefused(StoreError):
    """What a store answers to HEAD that answers GET as it should."""


@dataclass
class Wanted:
    """The bytes of a chunk: where they are stored, and where they shall go."""

    key: str
    first: int = 0
    size: int | None = None
    """None for all that is there from `first` on."""
    part: bool = False
    """True when there may be more in the store than that."""
    version: Any = None
    """What they have to be a part of, as stores tell versions apart; None for any."""
    into: memoryview | None = None
    """Memory of the reader's, to be used if it has just the size that is found."""


def rooms_of(wanted: list[Wanted]) -> list[memoryview]:
    """Memory for the bytes of each, whose sizes are known: the reader's where it fits, else a part of this thread's."""
    fits = [one.into is not None and one.into.nbytes == one.size for one in wanted]
    sizes = [0 if fit else one.size or 0 for one, fit in zip(wanted, fits, strict=True)]
    own, ends = memoryview(scratch("raw", sum(sizes))), list(accumulate(sizes, initial=0))
    return [
        one.into if fit and one.into is not None else own[start : start + size]
        for one, fit, start, size in zip(wanted, fits, ends, sizes, strict=False)
    ]


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
        except StoreError as error:  # answers to HEAD give no reason, and those to GET do
            await self._insist(key, lambda: obstore.get_async(self.store, key))  # of which nothing is read
            raise HeadRefused(error.text, error.key) from None

    def heads(self, keys: Iterable[str]) -> dict[str, Any]:
        """What `head` says of each of them, all asked for at once; None of one that is not there."""
        at_once = asyncio.Semaphore(MOST_PARTS)

        async def head(key: str) -> Any:
            with suppress(FileNotFoundError):
                async with at_once:
                    return await self._head(key)
            return None

        async def every() -> dict[str, Any]:
            wanted = list(dict.fromkeys(keys))
            return dict(zip(wanted, await asyncio.gather(*map(head, wanted)), strict=True))

        return sync(every())

    def fetch(self, wanted: list[Wanted]) -> list[memoryview] | None:
        """The bytes of chunks, many parts at a time, there until this thread asks again.

        None when one is not there, or is another than it was.

        Raises:
            StoreError: the store does not give them.
        """
        try:
            heads = self.heads(one.key for one in wanted if one.size is None)
        except HeadRefused:  # Zarr asks with GET alone
            return None
        if None in heads.values():
            return None
        for one in wanted:
            if one.size is None:
                one.size, one.version = heads[one.key]["size"] - one.first, heads[one.key]["e_tag"]
        rooms = rooms_of(wanted)
        parts = [
            (one, start, view[start : start + PART_BYTES])
            for one, view in zip(wanted, rooms, strict=True)
            for start in range(0, len(view), PART_BYTES if self._by_version(one) else max(1, len(view)))
        ]
        waiting = threading.Event()
        waiting.set()
        try:
            return rooms if sync(self._fetch(parts, waiting)) else None
        finally:  # after Ctrl-C the loop's thread goes on
            waiting.clear()

    def _by_version(self, one: Wanted) -> bool:
        """Whether parts can be asked for that are all of one version; servers of the web know neither for sure."""
        return bool(one.version) and self.address.store != "web"

    async def _fetch(self, parts: list[tuple[Wanted, int, memoryview]], waiting: threading.Event) -> bool:
        at_once = asyncio.Semaphore(MOST_PARTS)

        async def fill(one: Wanted, start: int, view: memoryview) -> bool:
            first = one.first + start
            options: Any = {"if_match": one.version} if self._by_version(one) else {}
            if first > 0 or len(view) < (one.size or 0) or one.part:
                options["range"] = (first, first + len(view))

            async def ask() -> Any:
                answer = await obstore.get_async(self.store, one.key, options=options)
                return answer.meta["e_tag"], await answer.bytes_async()

            async with at_once:
                version, found = await self._insist(one.key, ask)
            # Not every store that speaks S3 heeds If-Match.
            whole = len(found) == len(view) and ("range" not in options or version == one.version)
            if whole and waiting.is_set():
                view[:] = memoryview(found)
            return whole

        tasks = [asyncio.ensure_future(fill(*part)) for part in parts]
        try:
            return all(await asyncio.gather(*tasks))
        except (FileNotFoundError, PreconditionError):
            return False
        finally:  # nothing may be written later: the memory will be used for other chunks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
            except (FileNotFoundError, PreconditionError):
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
