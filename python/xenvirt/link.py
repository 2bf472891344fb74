"""A link: the driver's end of a device, whether it sits behind a socket or in this process.

Memory and rings are the same for both. The memory is one memfd; each queue has a range of it, for its ring
and for the buffers of its requests. Guest and user addresses differ on purpose: a backend that mixes them up
is found out at once.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from xenvirt._native import DriverQueue, FileRegion, GuestMemory
from xenvirt.drivers.request import Answer, Request
from xenvirt.errors import LinkTimeoutError, QueueFullError, QueueStoppedError
from xenvirt.virtio.features import Feature

T = TypeVar("T")

GUEST_ADDRESS = 0x4000_0000
USER_ADDRESS = 0x7F00_0000_0000
QUEUE_MEMORY = 32 << 20
"""Bytes of memory a queue, for its ring and the buffers under way. Only what is touched costs anything."""


class Completion(Generic[T]):
    """A request that is under way, and then its result."""

    def __init__(self, link: Link, request: Request[T]) -> None:
        self._link = link
        self.request = request
        self.done = False
        self._answer: Answer | None = None
        self._parsed: list[T] = []
        self.callback: Callable[[Completion[T]], object] | None = None

    def answered(self, answer: Answer) -> None:
        """The link got the answer."""
        self._answer = answer
        self.done = True
        if self.callback is not None:
            self.callback(self)

    def result(self) -> T:
        """Waits for the answer, and gives the request's result. Asked again, it gives the same again.

        Raises:
            LinkTimeoutError: the device did not answer within the link's timeout. Asking again waits again.
            DisconnectedError: the backend went away.
            DeviceFailedError: the device stopped working.
        """
        if not self.done:
            self._link.wait_for(lambda: self.done, self.request.what)
        if not self._parsed:
            assert self._answer is not None
            self._parsed.append(self.request.parse(self._answer))
        return self._parsed[0]


class LinkMemory:
    """The memory that a driver shares with its device, and the queues in it."""

    def __init__(self, queue_sizes: Sequence[int], features: int) -> None:
        size = QUEUE_MEMORY * max(len(queue_sizes), 1)
        self.fd = os.memfd_create("xenvirt-link", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.region = FileRegion(self.fd, GUEST_ADDRESS, size, user_address=USER_ADDRESS)
        self.guest = GuestMemory([self.region])
        self.queues = [
            DriverQueue(
                index,
                ring,
                self.guest,
                GUEST_ADDRESS + index * QUEUE_MEMORY,
                QUEUE_MEMORY,
                event_idx=bool(features & Feature.EVENT_IDX),
                indirect=bool(features & Feature.INDIRECT_DESC),
                in_order=bool(features & Feature.IN_ORDER),
            )
            for index, ring in enumerate(queue_sizes)
        ]

    def close(self) -> None:
        """Lets go of the memory."""
        self.queues.clear()
        self.guest.close()
        os.close(self.fd)


class Link(ABC):
    """The driver's end of a device: what :func:`xenvirt.connect` gives, and what a typed driver speaks
    through.

    A link is a context manager; leaving the block resets the device and closes the link. It is for one
    thread.

    Attributes:
        timeout: how long the device may take for an answer, in seconds; None waits for ever.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._memory: LinkMemory | None = None
        self._under_way: dict[tuple[int, int], Completion[Any]] = {}
        self._epoll = select.epoll()
        self._closed = False

    # What a kind of link has to say.

    @property
    @abstractmethod
    def offered_features(self) -> int:
        """The feature bits that the device offers."""

    @property
    @abstractmethod
    def negotiated_features(self) -> int:
        """The feature bits that were agreed on; 0 before the driver has started."""

    @property
    @abstractmethod
    def queue_count(self) -> int:
        """How many queues the device has."""

    @abstractmethod
    def config(self, offset: int, size: int) -> bytes:
        """Reads the config space. A shorter answer means that the space ends there."""

    @abstractmethod
    def write_config(self, offset: int, data: bytes) -> None:
        """Writes to the config space."""

    @property
    @abstractmethod
    def config_changes(self) -> int:
        """How often the device said that its config space changed, since the link was made."""

    @abstractmethod
    def _start(self, features: int, memory: LinkMemory) -> None:
        """Tells the device of memory and rings, and starts them."""

    @abstractmethod
    def _attend(self, ready: Sequence[tuple[int, int]]) -> None:
        """Deals with descriptors that are ready and that are not calls; raises when the device is gone."""

    @abstractmethod
    def _stop(self) -> None:
        """Resets the device and closes what the link has of it."""

    # What all have in common.

    @property
    def features(self) -> int:
        """The feature bits that are negotiated; those that are offered, until the driver has started."""
        return self.negotiated_features if self._memory is not None else self.offered_features

    def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        """Negotiates and sets the queues up: acknowledges what of ``features`` is offered, and starts one
        ring for each size. Drivers do it when they are made.

        Raises:
            NegotiationError: the device has fewer queues, or smaller ones.
            QueueStoppedError: the link is closed, or has a driver already.
        """
        if self._closed:
            raise QueueStoppedError("the link is closed")
        if self._memory is not None:
            raise QueueStoppedError("the link has a driver already; a second one needs a link of its own")
        acked = int(features) & self.offered_features
        memory = LinkMemory(queue_sizes, acked)
        try:
            self._start(acked, memory)
        except BaseException:
            memory.close()
            raise
        self._memory = memory
        for queue in memory.queues:
            self._epoll.register(queue.fileno(), select.EPOLLIN)

    def submit(self, request: Request[T]) -> Completion[T]:
        """Submits a request without waiting for the answer. Waits for room in the ring, if there is none.

        Raises:
            QueueStoppedError: no driver has started the queue, or the link is closed.
            ValueError: the request does not fit the ring, or its memory, at all.
        """
        while True:
            try:
                return self.submit_now(request)
            except QueueFullError:
                self._wait_for_room(self._queue(request.queue), request.what)

    def submit_all(self, requests: Sequence[Request[T]]) -> list[Completion[T]]:
        """Submits several requests at once: the device finds all of them together, as far as the ring has
        room for them at this moment. The rest follows when it has.
        """
        completions: list[Completion[T]] = []
        while True:
            completions += self.submit_all_now(requests[len(completions) :])
            if len(completions) == len(requests):
                return completions
            blocked = requests[len(completions)]
            self._wait_for_room(self._queue(blocked.queue), blocked.what)

    def submit_all_now(self, requests: Sequence[Request[T]]) -> list[Completion[T]]:
        """As :meth:`submit_all`, without waiting for room: gives the completions of those that fit."""
        queues = {request.queue: self._queue(request.queue) for request in requests}
        completions: list[Completion[T]] = []
        try:
            for request in requests:
                completions.append(self.submit_now(request, publish=False))
        except QueueFullError:
            pass
        finally:
            for queue in queues.values():
                queue.publish()
        return completions

    def submit_now(self, request: Request[T], *, publish: bool = True) -> Completion[T]:
        """As :meth:`submit`, without waiting for room. With ``publish=False`` the device does not see it
        until the queue's next request.

        Raises:
            QueueFullError: there is none.
        """
        token = self._queue(request.queue).submit(request.readable, request.writable, publish=publish)
        completion = Completion(self, request)
        self._under_way[(request.queue, token)] = completion
        return completion

    def run(self, request: Request[T]) -> T:
        """Submits a request and waits for its result.

        Raises:
            LinkTimeoutError: the device did not answer within the link's timeout.
            DisconnectedError: the backend went away.
        """
        return self.submit(request).result()

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Deals with what comes from the device until ``done()``; ``what`` is for the error message.

        Raises:
            LinkTimeoutError: it took longer than the link's timeout.
        """
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            self.collect()
            if done():
                return
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not self.attend(left) and left == 0.0:
                raise LinkTimeoutError(f"the device did not answer within {self.timeout:g} s: {what}")

    def attend(self, timeout: float | None) -> bool:
        """Waits at most ``timeout`` seconds for something from the device, and deals with it unless it is an
        answer, which :meth:`collect` takes. False if nothing came.

        Raises:
            DisconnectedError: the backend went away.
            DeviceFailedError: the device stopped working.
        """
        ready = self._epoll.poll(timeout)
        if ready:
            self._attend(ready)
        return bool(ready)

    def fileno(self) -> int:
        """A descriptor that is readable while something came from the device."""
        return self._epoll.fileno()

    def collect(self) -> None:
        """Takes back what the device has answered so far."""
        if self._memory is None:
            return
        for queue in self._memory.queues:
            for token, buffers, used in queue.completed():
                self._under_way.pop((queue.index, token)).answered(Answer(buffers, used))

    def close(self) -> None:
        """Resets the device and closes the link. What is under way gets no answer any more."""
        if self._closed:
            return
        self._closed = True
        try:
            self._stop()
        finally:
            self._under_way.clear()
            self._epoll.close()
            if self._memory is not None:
                self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_for_room(self, queue: DriverQueue, what: str) -> None:
        before = queue.pending
        self.wait_for(lambda: queue.pending < before, f"room for a {what}")

    def _queue(self, index: int) -> DriverQueue:
        if self._memory is None or self._closed:
            raise QueueStoppedError(
                "the link is closed" if self._closed else "no driver has started the queues of this link"
            )
        if index >= len(self._memory.queues):
            raise QueueStoppedError(f"queue {index} was not started: there are {len(self._memory.queues)}")
        return self._memory.queues[index]
