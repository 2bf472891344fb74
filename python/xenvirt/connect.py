"""``connect``: the driver's end of a device behind a socket, or of one in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from xenvirt import _native
from xenvirt.device import AnyDevice, AsyncDevice, Device
from xenvirt.drivers.request import Request
from xenvirt.errors import LinkTimeoutError, QueueFullError, QueueStoppedError
from xenvirt.in_process import InProcessLink
from xenvirt.link import Completion, Link
from xenvirt.vhost_user.frontend import Frontend

T = TypeVar("T")


@overload
def connect(
    target: str | os.PathLike[str], *, timeout: float | None = 5.0, protocol_features: int | None = None
) -> Frontend: ...
@overload
def connect(target: Device, *, timeout: float | None = 5.0) -> InProcessLink: ...
def connect(
    target: str | os.PathLike[str] | Device,
    *,
    timeout: float | None = 5.0,
    protocol_features: int | None = None,
) -> Frontend | InProcessLink:
    """Connects to a device: to a vhost-user backend by the path of its socket, or to a device of this
    process.

    A socket that is not there yet, or that nobody listens on at the moment, is tried again until ``timeout``.

    Args:
        target: the path, or the device.
        timeout: how long connecting, and then each answer, may take, in seconds; None waits for ever.
        protocol_features: the vhost-user protocol features to agree on, as far as the backend offers them;
            by default all that are of use here.

    Raises:
        DisconnectedError: nobody listens there, or the backend hung up.
        OSError: what is there is no socket, or not for us.
        LinkTimeoutError: the backend did not answer in time.
        NegotiationError: the backend wants something that was not chosen (XEN_MMAP).
        TypeError: ``target`` is an :class:`~xenvirt.AsyncDevice`: use :func:`connect_async`.
    """
    if isinstance(target, AsyncDevice):
        raise TypeError(f"{type(target).__name__} is an AsyncDevice: connect to it with connect_async")
    if isinstance(target, Device):
        return InProcessLink(target, timeout)
    protocol = _native.Frontend(os.fspath(target), timeout=timeout, protocol_features=protocol_features)
    return Frontend(protocol, timeout, os.fspath(target))


class AsyncLink:
    """A link on asyncio: what :func:`connect_async` gives, and what a driver such as ``AsyncEntropyDriver``
    speaks through.

    An async context manager; leaving the block resets the device and closes the link. Everything runs on the
    event loop's thread, but for the requests of the vhost-user protocol itself, which may block and run on
    another one.

    Attributes:
        link: the link underneath, with all that can be asked without waiting.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link.fileno(), self._ready)
        self._waiting: set[asyncio.Future[Any]] = set()
        self._room: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None
        self._closed = False
        if isinstance(link, InProcessLink):
            link.on_failure = self._fail

    @property
    def offered_features(self) -> int:
        """The feature bits that the device offers."""
        return self.link.offered_features

    @property
    def features(self) -> int:
        """The feature bits that are negotiated; those that are offered, until the driver has started."""
        return self.link.features

    @property
    def queue_count(self) -> int:
        """How many queues the device has."""
        return self.link.queue_count

    @property
    def timeout(self) -> float | None:
        """As :attr:`Link.timeout`."""
        return self.link.timeout

    @property
    def config_changes(self) -> int:
        """How often the device said that its config space changed, since the link was made."""
        return self.link.config_changes

    async def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        """As :meth:`Link.start`."""
        await self._call(lambda: self.link.start(features, queue_sizes))

    async def config(self, offset: int, size: int) -> bytes:
        """As :meth:`Link.config`."""
        return await self._call(lambda: self.link.config(offset, size))

    async def write_config(self, offset: int, data: bytes) -> None:
        """As :meth:`Link.write_config`."""
        await self._call(lambda: self.link.write_config(offset, data))

    async def run(self, request: Request[T]) -> T:
        """Submits a request and waits for its result. Many may run at once, as tasks. One that is cancelled
        still runs in the device; its answer is dropped.

        Raises:
            LinkTimeoutError: the device did not answer within the link's timeout.
            DisconnectedError: the backend went away.
            DeviceFailedError: the device stopped working.
        """
        try:
            async with asyncio.timeout(self.link.timeout):
                completion = await self._submit(request)
                if not completion.done:
                    answered: asyncio.Future[None] = self._loop.create_future()
                    completion.callback = lambda _: _set(answered)
                    await self._wait(answered)
        except TimeoutError as error:
            raise LinkTimeoutError(
                f"the device did not answer within {self.link.timeout:g} s: {request.what}"
            ) from error
        return completion.result()

    async def submit_all(self, requests: Sequence[Request[T]]) -> list[asyncio.Future[T]]:
        """Submits several requests at once: the device finds all of them together, as far as the ring has
        room for them at this moment; the rest follows when it has. Returns once all are in the ring.

        Returns:
            The result of each, however long it takes: no timeout counts for them.

        Raises:
            LinkTimeoutError: there was no room within the link's timeout.
        """
        futures: list[asyncio.Future[T]] = []
        while True:
            completions = self.link.submit_all_now(requests[len(futures) :])
            futures += [self._future(completion) for completion in completions]
            if len(futures) == len(requests):
                return futures
            what = requests[len(futures)].what
            try:
                async with asyncio.timeout(self.link.timeout):
                    await self._wait_for_room()
            except TimeoutError as error:
                raise LinkTimeoutError(
                    f"the device did not answer within {self.link.timeout:g} s: room for a {what}"
                ) from error

    def _future(self, completion: Completion[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()

        def answered(_: object) -> None:
            if future.done():
                return
            try:
                future.set_result(completion.result())
            except Exception as error:
                future.set_exception(error)

        if self._failure is not None:
            future.set_exception(self._failure)
        elif completion.done:
            answered(None)
        else:
            completion.callback = answered
            self._waiting.add(future)
            future.add_done_callback(self._waiting.discard)
        return future

    async def _submit(self, request: Request[T]) -> Completion[T]:
        while True:
            try:
                return self.link.submit_now(request)
            except QueueFullError:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        room: asyncio.Future[None] = self._loop.create_future()
        self._room.add(room)
        await self._wait(room)

    async def close(self) -> None:
        """Resets the device and closes the link. What is under way gets no answer any more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self.link.fileno())
            self._fail(QueueStoppedError("the link is closed"))
            await self._call(self.link.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, call: Callable[[], T]) -> T:
        """A call that waits for the backend. A device in this process runs on the event loop itself."""
        if isinstance(self.link, InProcessLink):
            return call()
        return await asyncio.to_thread(call)

    async def _wait(self, future: asyncio.Future[None]) -> None:
        """Waits for what :meth:`_ready` does, or for the end of the link."""
        if self._failure is not None:
            raise self._failure
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        for future in tuple(self._waiting):
            if not future.done():
                future.set_exception(error)

    def _ready(self) -> None:
        try:
            self.link.attend(0)
            self.link.collect()
        except Exception as error:
            self._fail(error)
        room, self._room = self._room, set()
        for future in room:
            _set(future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def connect_async(
    target: str | os.PathLike[str] | AnyDevice,
    *,
    timeout: float | None = 5.0,
    protocol_features: int | None = None,
) -> AsyncLink:
    """As :func:`connect`, for asyncio: ``async with await connect_async(path) as link``.

    A device in this process is served on the running event loop; it may be an :class:`~xenvirt.AsyncDevice`.
    """
    if isinstance(target, Device | AsyncDevice):
        return AsyncLink(InProcessLink(target, timeout, on_asyncio=True))
    path: Any = target
    return AsyncLink(
        await asyncio.to_thread(connect, path, timeout=timeout, protocol_features=protocol_features)
    )
