"""What passes between a typed driver and the link that it speaks through, without any I/O.

A driver knows what to say and how to read the answer, a link knows how to get it across. So each operation of
a driver is a :class:`Request`, and the same driver code serves a blocking link and one of asyncio. A new
driver needs nothing else::

    def temperature() -> Request[int]:
        return Request(0, [b"T?"], [2], lambda answer: int.from_bytes(answer.buffers[0], "little"),
        "temperature")

    with connect("thermometer.sock") as link:
        link.start(Feature.VERSION_1, [8])
        print(link.run(temperature()))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FILL = 0xA5
"""The byte that writable buffers are filled with before the device gets them: what it left alone can be seen.
"""


@dataclass(frozen=True)
class Answer:
    """What came back from the device for one request."""

    buffers: Sequence[bytes]
    """The device-writable buffers, whole, in the order of the request. Bytes that the device left alone are
    FILL.
    """
    used: int
    """How many bytes the device says that it wrote, counted from the beginning of the first buffer (virtio
    1.3, section 2.7.8). Devices are not always truthful here: a status byte at the end is often written
    without being counted."""

    def data(self, index: int = 0) -> bytes:
        """The part of a buffer that the device says it wrote."""
        before = sum(len(buffer) for buffer in self.buffers[:index])
        return self.buffers[index][: max(self.used - before, 0)]


@dataclass(frozen=True)
class Request(Generic[T]):
    """One descriptor chain to be sent, and how to read what comes back."""

    queue: int
    """The queue that it goes to."""
    readable: Sequence[Buffer]
    """What the device reads: one descriptor for each buffer. The contents are copied when the request is
    submitted.
    """
    writable: Sequence[int]
    """The sizes of the buffers that the device writes, in bytes: one descriptor for each."""
    parse: Callable[[Answer], T]
    """Makes the result of the answer. What it raises is what the caller gets."""
    what: str = "request"
    """What it is, for messages: ``read of 4096 bytes at 0``."""


class Pending(Protocol[T_co]):
    """A request that is under way."""

    callback: Callable[[Any], object] | None
    """Called with this once the device has answered; answers come in the device's order."""

    @property
    def done(self) -> bool:
        """True once the device has answered, as far as the link has looked."""
        ...

    def result(self) -> T_co:
        """Waits for the answer, and gives the request's result. Asked again, it gives the same again.

        Raises:
            LinkTimeoutError: the device did not answer within the link's timeout. Asking again waits again.
            DisconnectedError: the backend went away.
        """
        ...


class LinkInfo(Protocol):
    """What any link can tell without asking the device."""

    @property
    def offered_features(self) -> int:
        """The feature bits that the device offers."""
        ...

    @property
    def features(self) -> int:
        """The feature bits that are negotiated; those that are offered, until the driver has started."""
        ...

    @property
    def queue_count(self) -> int:
        """How many queues the device has."""
        ...

    @property
    def config_changes(self) -> int:
        """How often the device said that its configuration space changed, since the link was made."""
        ...


class Link(LinkInfo, Protocol):
    """What a driver needs of a link that blocks. :func:`xenvirt.connect` gives one."""

    def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        """Negotiates and sets the queues up: acknowledges what of `features` is offered, and starts one ring
        for each size.
        """
        ...

    def config(self, offset: int, size: int) -> bytes:
        """Reads the configuration space. A shorter answer means that the space ends there."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Writes to the configuration space."""
        ...

    def run(self, request: Request[T]) -> T:
        """Submits a request and waits for its result."""
        ...

    def submit(self, request: Request[T]) -> Pending[T]:
        """Submits a request without waiting for the answer. Waits for room in the ring, if there is none."""
        ...

    def submit_all(self, requests: Sequence[Request[T]]) -> Sequence[Pending[T]]:
        """Submits several requests; the device finds them together, as far as the ring has room for them."""
        ...

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Deals with what comes from the device until `done()`; `what` is for the error message.

        Raises:
            LinkTimeoutError: it took longer than the link's timeout.
        """
        ...

    def attend(self, timeout: float | None) -> bool:
        """Waits at most `timeout` seconds for something from the device; False if nothing came. Answers are
        taken by :meth:`collect`.
        """
        ...

    def collect(self) -> None:
        """Takes back what the device has answered so far."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable while something came from the device."""
        ...

    @property
    def timeout(self) -> float | None:
        """How long the device may take for an answer, in seconds; None waits for ever."""
        ...


class AsyncLink(LinkInfo, Protocol):
    """What a driver needs of a link of asyncio. :func:`xenvirt.connect_async` gives one."""

    async def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        """As :meth:`Link.start`."""
        ...

    async def config(self, offset: int, size: int) -> bytes:
        """As :meth:`Link.config`."""
        ...

    async def write_config(self, offset: int, data: bytes) -> None:
        """As :meth:`Link.write_config`."""
        ...

    async def run(self, request: Request[T]) -> T:
        """As :meth:`Link.run`. Many may run at once, as tasks."""
        ...

    @property
    def timeout(self) -> float | None:
        """As :attr:`Link.timeout`."""
        ...

    async def submit_all(self, requests: Sequence[Request[T]]) -> list[asyncio.Future[T]]:
        """As :meth:`Link.submit_all`; the results may take as long as they take."""
        ...
