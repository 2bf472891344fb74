"""A link without native code: a function answers each request, when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from xenvirt.drivers import Answer, Request
from xenvirt.drivers.request import FILL
from xenvirt.errors import LinkTimeoutError
from xenvirt.virtio import Feature

T = TypeVar("T")

Device = Callable[[int, bytes, list[bytearray]], int | None]
"""Gets the queue, what is readable and the writable buffers; gives the used length, or None: not yet."""


class FakePending(Generic[T]):
    def __init__(self, link: FakeLink, request: Request[T]) -> None:
        self.link, self.request = link, request
        self.callback: Callable[[Any], object] | None = None
        self.done = False
        self.results: list[T] = []
        self.failure: Exception | None = None

    def ask(self) -> bool:
        """Asks the device; True if it answered."""
        answer = self.link.answer(self.request)
        if answer is None:
            return False
        self.link.waiting.remove(self)
        self.done = True
        try:
            self.results.append(self.request.parse(answer))
        except Exception as error:
            self.failure = error
        if self.callback is not None:
            self.callback(self)
        return True

    def result(self) -> T:
        if not self.done and not self.ask():
            raise LinkTimeoutError(f"no answer: {self.request.what}")
        if self.failure is not None:
            raise self.failure
        return self.results[0]


@dataclass
class FakeLink:
    """Asks the device for the result of what was submitted when the result is wanted, or by `collect`.

    While somebody waits, `later` is what happens: one function at a time.
    """

    device: Device
    offered_features: int = Feature.VERSION_1
    queue_count: int = 1
    space: bytearray = field(default_factory=bytearray)
    features: int = 0
    timeout: float | None = 0.1
    started: tuple[int, ...] = ()
    requests: list[Request[Any]] = field(default_factory=list)
    waiting: list[FakePending[Any]] = field(default_factory=list)
    most_waiting: int = 0
    later: list[Callable[[], object]] = field(default_factory=list)
    config_changes: int = 0

    def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        self.features = features & self.offered_features
        self.started = tuple(queue_sizes)

    def config(self, offset: int, size: int) -> bytes:
        return bytes(self.space[offset : offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        self.space[offset : offset + len(data)] = data

    def answer(self, request: Request[Any]) -> Answer | None:
        if request.queue >= len(self.started):
            raise LinkTimeoutError(f"queue {request.queue} does not run")
        buffers = [bytearray([FILL]) * size for size in request.writable]
        used = self.device(request.queue, b"".join(bytes(part) for part in request.readable), buffers)
        return None if used is None else Answer([bytes(buffer) for buffer in buffers], used)

    def run(self, request: Request[T]) -> T:
        return self.submit(request).result()

    def submit(self, request: Request[T]) -> FakePending[T]:
        self.requests.append(request)
        pending = FakePending(self, request)
        self.waiting.append(pending)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return pending

    def submit_all(self, requests: Sequence[Request[T]]) -> list[FakePending[T]]:
        return [self.submit(request) for request in requests]

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        if not done():
            raise LinkTimeoutError(what)

    def attend(self, timeout: float | None) -> bool:  # noqa: ARG002 - nothing happens here that takes time
        if not self.later:
            return False
        self.later.pop(0)()
        return True

    def fileno(self) -> int:
        return -1

    def collect(self) -> None:
        for pending in tuple(self.waiting):
            pending.ask()


class FakeAsyncLink:
    """The same for asyncio; what the device keeps is asked for again after each request, and by `poke`."""

    def __init__(self, link: FakeLink) -> None:
        self.link = link

    @property
    def offered_features(self) -> int:
        return self.link.offered_features

    @property
    def features(self) -> int:
        return self.link.features

    @property
    def queue_count(self) -> int:
        return self.link.queue_count

    @property
    def timeout(self) -> float | None:
        return self.link.timeout

    @property
    def config_changes(self) -> int:
        return self.link.config_changes

    async def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        self.link.start(features, queue_sizes)

    async def config(self, offset: int, size: int) -> bytes:
        return self.link.config(offset, size)

    async def write_config(self, offset: int, data: bytes) -> None:
        self.link.write_config(offset, data)

    async def run(self, request: Request[T]) -> T:
        result = self.link.run(request)
        self.poke()
        return result

    async def submit_all(self, requests: Sequence[Request[T]]) -> list[asyncio.Future[T]]:
        futures = [self._future(pending) for pending in self.link.submit_all(requests)]
        self.poke()
        return futures

    def _future(self, pending: FakePending[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def answered(_: object) -> None:
            if future.done():
                return
            if pending.failure is not None:
                future.set_exception(pending.failure)
            else:
                future.set_result(pending.results[0])

        pending.callback = answered
        if pending.done:
            answered(None)
        return future

    def poke(self) -> None:
        """The device may have something for those who wait."""
        self.link.collect()


class Disk:
    """A block device of a few lines, to be the other side of a FakeLink."""

    def __init__(self, sectors: int) -> None:
        self.data = bytearray(sectors * 512)
        self.status = 0
        self.log: list[tuple[int, int, int]] = []  # type, sector, bytes of data

    def __call__(self, _queue: int, readable: bytes, writable: list[bytearray]) -> int:
        kind, sector = int.from_bytes(readable[:4], "little"), int.from_bytes(readable[8:16], "little")
        payload, target = readable[16:], writable[:-1]
        room = sum(len(part) for part in target)
        self.log.append((kind, sector, len(payload) or room))
        start, end = sector * 512, sector * 512 + (len(payload) or room)
        if self.status or end > len(self.data):
            writable[-1][0] = self.status or 1
            return 1
        used = 1
        if kind == 0:
            for part in target:
                part[:] = self.data[start : start + len(part)]
                start += len(part)
            used += room
        elif kind == 1:
            self.data[start:end] = payload
        elif kind == 8:
            target[0][:] = b"serial-7".ljust(20, b"\0")
            used += 20
        elif kind == 13:
            for at in range(0, len(payload), 16):
                first = int.from_bytes(payload[at : at + 8], "little")
                count = int.from_bytes(payload[at + 8 : at + 12], "little")
                self.data[first * 512 : (first + count) * 512] = bytes(count * 512)
        writable[-1][0] = 0
        return used
