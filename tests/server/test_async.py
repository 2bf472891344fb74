"""Devices and links on asyncio."""

from __future__ import annotations

import asyncio

import pytest

from xenvirt import AsyncDevice, VhostUserSocket, VirtQueue, connect_async, serve_async
from xenvirt.drivers.request import Request
from xenvirt.errors import DeviceFailedError, LinkTimeoutError

from .conftest import echo_request
from .devices import AsyncEcho, Echo, Keeper


async def try_out(path: str, device: AsyncDevice | Echo) -> None:
    serving = asyncio.create_task(serve_async(device, VhostUserSocket(path)))
    for _ in range(2):
        async with await connect_async(path) as link:
            await link.start(link.offered_features, [16])
            texts = [b"%d" % number for number in range(100)]
            # More than the ring takes at once.
            assert await asyncio.gather(*(link.run(echo_request(text)) for text in texts)) == texts
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


def test_an_async_device_serves_one_frontend_after_the_other(path: str) -> None:
    asyncio.run(try_out(path, AsyncEcho()))


def test_a_plain_device_is_served_on_asyncio_too(path: str) -> None:
    device = Echo()
    asyncio.run(try_out(path, device))
    assert device.happened == ["activate", "reset"] * 2


def test_an_async_device_may_wait_in_the_middle() -> None:
    class Slow(AsyncDevice):
        device_id = 63
        queue_sizes = (16, 16)

        def __init__(self) -> None:
            self.others = asyncio.Event()

        async def process(self, queue: VirtQueue) -> None:
            for chain in queue:
                if queue.index == 0:
                    await self.others.wait()
                else:
                    self.others.set()
                chain.write(chain.read())
                chain.complete()

    async def main() -> None:
        async with await connect_async(Slow()) as link:
            await link.start(link.offered_features, [16, 16])
            first = asyncio.create_task(link.run(echo_request(queue=0)))
            assert await link.run(echo_request(b"second", queue=1)) == b"second"
            assert await first == b"hello"

    asyncio.run(main())


def test_an_exception_in_an_async_device_reaches_the_driver() -> None:
    class Fails(AsyncDevice):
        device_id = 63
        queue_sizes = (16,)

        async def process(self, queue: VirtQueue) -> None:
            if queue.pop() is not None:
                raise RuntimeError("broken")

    async def main() -> None:
        async with await connect_async(Fails()) as link:
            await link.start(link.offered_features, [16])
            with pytest.raises(DeviceFailedError, match="broken"):
                await link.run(echo_request())

    asyncio.run(main())


def test_a_device_that_does_not_answer_is_a_timeout() -> None:
    async def main() -> None:
        async with await connect_async(Keeper(), timeout=0.05) as link:
            await link.start(link.offered_features, [16])
            with pytest.raises(LinkTimeoutError, match=r"within 0\.05 s: a question"):
                await link.run(Request(0, [b"?"], [1], lambda answer: answer.data(), "a question"))

    asyncio.run(main())
