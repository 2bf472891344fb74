"""The drivers of asyncio, over a device of this process and over a socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from xenvirt import Server, VhostUserSocket, connect_async
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.drivers import AsyncBlockDriver, AsyncEntropyDriver
from xenvirt.errors import RequestFailedError

SIZE = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BlockDevice]:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    with BlockDevice(image, queues=2) as made:
        yield made


@asynccontextmanager
async def driven(device: BlockDevice, socket: Path | None) -> AsyncIterator[AsyncBlockDriver]:
    """The device in this process, or behind a socket."""
    if socket is None:
        async with await connect_async(device) as link, AsyncBlockDriver(link) as disk:
            yield disk
        return
    with Server() as server:
        server.add(device, VhostUserSocket(socket))
        async with await connect_async(socket) as link, AsyncBlockDriver(link) as disk:
            yield disk


@pytest.mark.parametrize("behind_socket", [False, True])
def test_many_tasks_share_one_disk(device: BlockDevice, tmp_path: Path, behind_socket: bool) -> None:
    async def use() -> None:
        async with driven(device, tmp_path / "s" if behind_socket else None) as disk:

            async def own_range(number: int) -> None:
                choice = random.Random(number)  # noqa: S311
                start, size = number * 32768, 32768
                expected = bytearray(size)
                for _ in range(10):
                    offset = choice.randrange(size - 5000)
                    data = choice.randbytes(choice.randrange(1, 5000))
                    # Whole sectors: what is not aligned would be read and written back, which is not atomic.
                    offset, data = offset // 512 * 512, data.ljust(-(-len(data) // 512) * 512, b"\0")
                    await disk.write(start + offset, data, queue=number % 2)
                    expected[offset : offset + len(data)] = data
                assert await disk.read(start, size, queue=(number + 1) % 2) == expected

            await asyncio.gather(*(own_range(number) for number in range(SIZE // 32768)))
            await disk.flush()

    asyncio.run(use())


@pytest.mark.parametrize("behind_socket", [False, True])
def test_every_operation_and_its_failure(device: BlockDevice, tmp_path: Path, behind_socket: bool) -> None:
    async def use() -> None:
        async with driven(device, tmp_path / "s" if behind_socket else None) as disk:
            await disk.write(0, b"\xff" * 8192)
            await disk.write_zeroes(4096, 4096, unmap=True)
            await disk.discard(0, 4096)
            assert await disk.read(0, 8192) == bytes(8192)
            assert await disk.get_id() == "disk.raw"
            await disk.set_writeback(False)
            assert (await disk.refresh()).writeback == 0
            with pytest.raises(RequestFailedError, match="read of 1 sectors at 2048"):
                await disk.read(SIZE, 512)

    asyncio.run(use())


def test_random_bytes() -> None:
    async def use() -> bytes:
        async with await connect_async(EntropyDevice()) as link, AsyncEntropyDriver(link) as rng:
            return await rng.read(100)

    assert len(asyncio.run(use())) == 100
