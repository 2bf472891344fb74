"""For devices that speak first: buffers that wait in a queue until the device fills them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from xenvirt.errors import LinkTimeoutError

from .request import AsyncLink, Link, Pending, Request

T = TypeVar("T")


class Receiver(Generic[T]):
    """Keeps a number of buffers with the device, and gives what it put there, in the order of the buffers.

    Args:
        link: the link, whose queue runs.
        make: makes the request for one buffer.
        depth: how many buffers the device has at a time. What comes while none is left is lost, or waits, as
            the device type has it.
    """

    def __init__(self, link: Link, make: Callable[[], Request[T]], depth: int) -> None:
        self._link = link
        self._make = make
        self._pending: deque[Pending[T]] = deque(link.submit(make()) for _ in range(depth))

    @property
    def ready(self) -> bool:
        """True if :meth:`get` need not wait, as far as the link has looked."""
        return self._pending[0].done

    def get(self) -> T:
        """Waits for the next one; its buffer goes to the device again.

        Raises:
            LinkTimeoutError: nothing came within the link's timeout. Nothing is lost; ask again.
        """
        result = self._pending[0].result()
        self._pending.popleft()
        self._pending.append(self._link.submit(self._make()))
        return result


class AsyncReceiver(Generic[T]):
    """As :class:`Receiver`, for asyncio; made by :meth:`start`. For one task at a time."""

    def __init__(self, link: AsyncLink, make: Callable[[], Request[T]]) -> None:
        self._link = link
        self._make = make
        self._pending: deque[asyncio.Future[T]] = deque()

    @classmethod
    async def start(cls, link: AsyncLink, make: Callable[[], Request[T]], depth: int) -> Self:
        """Gives the device its buffers."""
        receiver = cls(link, make)
        await receiver._submit(depth)
        return receiver

    @property
    def ready(self) -> bool:
        """True if :meth:`get` need not wait."""
        return self._pending[0].done()

    async def get(self) -> T:
        """As :meth:`Receiver.get`; if it is cancelled nothing is lost."""
        try:
            async with asyncio.timeout(self._link.timeout):
                result = await asyncio.shield(self._pending[0])
        except TimeoutError as error:
            what = self._make().what
            raise LinkTimeoutError(f"nothing came within {self._link.timeout:g} s: {what}") from error
        await self._submit(1)
        self._pending.popleft()
        return result

    async def _submit(self, count: int) -> None:
        for future in await self._link.submit_all([self._make() for _ in range(count)]):
            future.add_done_callback(_seen)
            self._pending.append(future)


def _seen(future: asyncio.Future[T]) -> None:
    """What nobody waited for any more, when the link ended, is no error to be reported."""
    if not future.cancelled():
        future.exception()
