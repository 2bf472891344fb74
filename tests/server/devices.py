"""Devices that the tests of the server watch at work."""

from __future__ import annotations

import threading

from xenvirt import AsyncDevice, Chain, Device, DeviceId, Session, VirtQueue


class Echo(Device):
    """Answers each request with what it read."""

    device_id = DeviceId.CONSOLE
    queue_sizes: tuple[int, ...] = (16,)
    config = bytes(8)

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.threads: set[str] = set()

    def activate(self, _session: Session) -> None:
        self.happened.append("activate")

    def reset(self) -> None:
        self.happened.append("reset")

    def config_written(self, offset: int, data: bytes) -> None:
        self.happened.append(f"config {offset} {data.hex()}")

    def process(self, queue: VirtQueue) -> None:
        self.threads.add(threading.current_thread().name)
        for chain in queue:
            chain.write(chain.read()[: chain.writable])
            chain.complete()


class AsyncEcho(AsyncDevice):
    """The same, as a coroutine."""

    device_id = DeviceId.CONSOLE
    queue_sizes = (16,)

    async def process(self, queue: VirtQueue) -> None:
        for chain in queue:
            chain.write(chain.read()[: chain.writable])
            chain.complete()


class Keeper(Echo):
    """Keeps every chain."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Chain] = []
        self.got = threading.Event()
        self.over = threading.Event()

    def process(self, queue: VirtQueue) -> None:
        self.kept += queue
        if self.kept:
            self.got.set()

    def reset(self) -> None:
        super().reset()
        self.over.set()


class Broken(Echo):
    """Raises as soon as there is a request."""

    def process(self, queue: VirtQueue) -> None:
        if queue.pop() is not None:
            raise RuntimeError("the device is broken")
