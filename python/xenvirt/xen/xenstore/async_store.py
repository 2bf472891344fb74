"""The xenstore on asyncio: many requests may be on their way at once, and nothing blocks the loop."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from xenvirt.errors import XenStoreError

from . import operations, replay
from .async_channel import AsyncChannel
from .async_nodes import AsyncNodes
from .async_transaction import AsyncTransaction
from .async_watch import AsyncWatch
from .operations import Call
from .store import TIMEOUT

T = TypeVar("T")


class AsyncXenStore(AsyncNodes):
    """A connection to the xenstore, for one event loop.

    ::

        async with AsyncXenStore() as store:
            print(await store.read(f"/local/domain/{domid}/name"))
            async with store.watch(f"/local/domain/{domid}/device") as watch:
                async for event in watch:
                    print(event.path)

    It is what :class:`XenStore` is, method by method, and raises the same. Tasks may use it at the same time;
    one that is cancelled disturbs no other. Over ``/dev/xen/xenbus`` setting a watch waits in the kernel for
    the daemon, and the loop with it.

    Args:
        path: as for :class:`XenStore`.
        timeout: seconds that an answer may take.

    Raises:
        XenStoreError: it cannot be reached (when the ``async with`` block is entered).
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float = TIMEOUT) -> None:
        self._channel = AsyncChannel(path, timeout)
        self._tokens = 0

    @property
    def timeout(self) -> float:
        """Seconds that an answer may take."""
        return self._channel.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.timeout = seconds

    # ---- domains

    async def domain_path(self, domid: int) -> str:
        """Where a domain's own nodes are, ``/local/domain/N``, whether it exists or not."""
        return await self._channel.run(operations.domain_path(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        """Whether the xenstore talks to this domain: it was made, and is not destroyed."""
        return await self._channel.run(operations.is_domain_introduced(domid))

    # ---- watches and transactions

    def watch(self, *paths: str, token: str | None = None) -> AsyncWatch:
        """Watches paths and all below them, from when its ``async with`` block is entered."""
        if token is None:
            self._tokens += 1
            token = f"xenvirt-{self._tokens}"
        if operations.checked_token(token) in self._channel.watches:
            raise ValueError(f"token {token!r} is the one of another watch of this connection")
        return AsyncWatch(self._channel, token, paths)

    def transaction(self) -> AsyncTransaction:
        """``async with store.transaction() as transaction``: as :meth:`XenStore.transaction`."""
        return AsyncTransaction(self._channel)

    async def transact(self, function: Callable[[AsyncTransaction], Awaitable[T]]) -> T:
        """Awaits a function with a transaction, again and again until nobody has changed what it read.

        Raises:
            XenStoreError: EAGAIN, 16 times in a row.
        """
        for left in reversed(range(replay.COMMIT_TRIES)):
            transaction = self.transaction()
            try:
                async with transaction:
                    result = await function(transaction)
            except XenStoreError as error:
                if error.errno != errno.EAGAIN or not transaction.conflicted or not left:
                    raise
            else:
                return result
        raise AssertionError("unreachable")

    # ---- life

    async def __aenter__(self) -> Self:
        self._channel.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection: its watches end, its transactions are discarded, who waits gets an error."""
        self._channel.close()

    def __repr__(self) -> str:
        return f"AsyncXenStore({self._channel.path!r})"

    # ---- parts

    async def _do(self, _subject: str, make: Callable[[int], Call[T]]) -> T:
        return await self._channel.run(make(0))
