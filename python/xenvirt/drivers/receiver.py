"""For devices that speak first: buffers that wait in a queue until the device fills them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from xenvirt.errors import LinkTimeoutError, RequestError

from .request import AsyncLink, Link, Pending, Request

T = TypeVar("T")

MOST_LENT = 32
"""How many buffers a receiver of depth 0 lends at most, if none comes back."""

LINKS_TIMEOUT = -1.0
"""A negative timeout stands for that of the link."""


def wait_until(link: Link, done: Callable[[], bool], timeout: float | None, what: str) -> None:
    """Takes what comes from the device until ``done()``; `what` is for the error message.

    Args:
        link: the link.
        done: is asked after each look.
        timeout: in seconds; None waits for ever, a negative one is the link's.
        what: what is waited for.

    Raises:
        LinkTimeoutError: it took longer than `timeout` seconds.
    """
    if timeout is not None and timeout < 0:
        timeout = link.timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        link.collect()
        if done():
            return
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise LinkTimeoutError(f"nothing came within {timeout:g} s: {what}")
        link.attend(left)


class Receiver(Generic[T]):
    """Keeps a number of buffers with the device, and gives what it put there, in its order.

    Args:
        link: the link, whose queue runs.
        make: makes the request for one buffer.
        depth: how many buffers there are. The device has those that were not filled, or were taken since.
            What comes while it has none is lost, or waits, as the device type has it. 0: the device gets one
            whenever somebody begins to wait, so that one can use devices that lose the buffers for which they
            have nothing.
    """

    def __init__(self, link: Link, make: Callable[[], Request[T]], depth: int) -> None:
        self._link = link
        self._make = make
        self._depth = depth
        self._lent = 0
        self._arrived: deque[Pending[T]] = deque()
        for _ in range(depth):
            self._lend()

    @property
    def ready(self) -> bool:
        """True if :meth:`get` need not wait, as far as the link has looked."""
        return bool(self._arrived)

    def get(self, timeout: float | None = LINKS_TIMEOUT) -> T:
        """Waits for the next one; the device gets a buffer in its place.

        Raises:
            LinkTimeoutError: nothing came within `timeout` seconds. Nothing is lost; ask again.
        """
        if not self._arrived:
            if not self._depth and self._lent < MOST_LENT:
                self._lend()
            wait_until(self._link, lambda: self.ready, timeout, self._make().what)
        pending = self._arrived.popleft()
        if self._depth:
            self._lend()
        return pending.result()

    def get_all(self) -> list[T]:
        """All that is there, without waiting."""
        self._link.collect()
        return [self.get() for _ in range(len(self._arrived))]

    def _lend(self) -> None:
        self._lent += 1
        pending = self._link.submit(self._make())
        if pending.done:
            self._came(pending)
        else:
            pending.callback = self._came

    def _came(self, pending: Pending[T]) -> None:
        self._lent -= 1
        self._arrived.append(pending)


class AsyncReceiver(Generic[T]):
    """As :class:`Receiver`, for asyncio; made by :meth:`start`. For one task at a time."""

    def __init__(self, link: AsyncLink, make: Callable[[], Request[T]], depth: int) -> None:
        self._link = link
        self._make = make
        self._depth = depth
        self._lent = 0
        self._arrived: deque[asyncio.Future[T]] = deque()
        self._something = asyncio.Event()
        self._failure: Exception | None = None

    @classmethod
    async def start(cls, link: AsyncLink, make: Callable[[], Request[T]], depth: int) -> Self:
        """Gives the device its buffers."""
        receiver = cls(link, make, depth)
        await receiver._lend(depth)
        return receiver

    @property
    def ready(self) -> bool:
        """True if :meth:`get` need not wait."""
        return bool(self._arrived)

    async def get(self, timeout: float | None = LINKS_TIMEOUT) -> T:
        """As :meth:`Receiver.get`; if it is cancelled nothing is lost."""
        if timeout is not None and timeout < 0:
            timeout = self._link.timeout
        if not self._arrived:
            if not self._depth and self._lent < MOST_LENT:
                await self._lend(1)
            try:
                async with asyncio.timeout(timeout):
                    while not self._arrived:
                        if self._failure is not None:
                            raise self._failure
                        self._something.clear()
                        await self._something.wait()
            except TimeoutError as error:
                raise LinkTimeoutError(f"nothing came within {timeout:g} s: {self._make().what}") from error
        return await self._take()

    async def get_all(self) -> list[T]:
        """As :meth:`Receiver.get_all`."""
        return [await self._take() for _ in range(len(self._arrived))]

    async def _take(self) -> T:
        if self._depth:
            try:
                await self._lend(1)
            except Exception as error:
                self._fail(error)  # told by the next get
        return self._arrived.popleft().result()

    async def _lend(self, count: int) -> None:
        # There is room for as many as come back, so this waits for nothing.
        self._lent += count
        for future in await self._link.submit_all([self._make() for _ in range(count)]):
            future.add_done_callback(self._came)

    def _came(self, future: asyncio.Future[T]) -> None:
        self._lent -= 1
        if future.cancelled():
            return
        error = future.exception()
        if error is None or isinstance(error, RequestError):
            self._arrived.append(future)
            self._something.set()
        elif isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._something.set()
