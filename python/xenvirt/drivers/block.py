"""The driver of the block device (virtio 1.3, section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenvirt.virtio.block import BlockConfig, BlockFeature

from .block_requests import BlockRequests
from .driver import AsyncDriver, Driver
from .request import AsyncLink, Link

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BlockDriver(BlockRequests, Driver):
    """Reads and writes a block device.

    ::

        with connect("disk.sock") as link, BlockDriver(link) as disk:
            disk.write(4096, b"hello")
            disk.flush()
            assert disk.read(4096, 5) == b"hello"

    Offsets and sizes of the methods here are in bytes; what is not aligned to sectors is read first and then
    written whole, which is not atomic. Long transfers take several requests, which run side by side. With
    several queues each operation goes to the queue that it names.

    Args:
        link: what :func:`xenvirt.connect` gave.
        queues: how many queues to use at most; by default all that the device has.
        queue_size: the size of each ring in descriptors, a power of two. Some backends have a largest one
            (128 and 64
            are seen) and end the connection above it.

    Raises, in each operation:
        RequestFailedError: the device answered IOERR.
        RequestUnsupportedError: it does not know the request, or the feature was not negotiated.
        ResponseError: it answered something that makes no sense.
        LinkTimeoutError: it did not answer in time; what was asked may have happened or not.
        DisconnectedError: the backend went away.
    """

    def __init__(self, link: Link, *, queues: int | None = None, queue_size: int = 128) -> None:
        self._wanted_queues, self._queue_size = queues, queue_size
        super().__init__(link)

    def read(self, offset: int, size: int, *, queue: int = 0) -> bytes:
        """Reads `size` bytes from `offset` on."""
        return self._perform(self._read(offset, size, queue))

    def write(self, offset: int, data: Buffer, *, queue: int = 0) -> None:
        """Writes all of `data` at `offset`. It is durable after the next :meth:`flush`."""
        self._perform(self._write(offset, data, queue))

    def flush(self, *, queue: int = 0) -> None:
        """Returns once every write that has returned before is durable.

        A device without FLUSH has no cache (section 5.2.5): there this returns at once.
        """
        self._perform(self._flush(queue))

    def discard(self, offset: int, size: int, *, queue: int = 0) -> None:
        """Says that a range is not needed any more; what it reads as afterwards is the device's choice.

        Raises:
            ValueError: `offset` or `size` is not a multiple of 512.
        """
        self._perform(self._discard(offset, size, queue))

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = False, queue: int = 0) -> None:
        """Makes a range read as zeroes; with `unmap` the device may free its storage.

        Raises:
            ValueError: `offset` or `size` is not a multiple of 512.
        """
        self._perform(self._write_zeroes(offset, size, unmap, queue))

    def get_id(self, *, queue: int = 0) -> str:
        """The device's serial number, at most 20 characters."""
        return self._perform(self._get_id(queue))

    def refresh(self) -> BlockConfig:
        """Reads the configuration space again, for instance after the disk was resized."""
        self.config_space = self.link.config(0, self._config_size(self.link))
        self.config = BlockConfig.from_bytes(self.config_space)
        return self.config

    def set_writeback(self, writeback: bool) -> None:
        """Switches between writeback (writes are durable after a flush) and writethrough (at once).

        Raises:
            RequestUnsupportedError: CONFIG_WCE was not negotiated.
        """
        self._need(BlockFeature.CONFIG_WCE, "switch its cache")
        self.link.write_config(BlockConfig.offset("writeback"), bytes([writeback]))
        self.refresh()


class AsyncBlockDriver(BlockRequests, AsyncDriver):
    """Reads and writes a block device, for asyncio. Any number of operations may run at once, as tasks.

    Args:
        link: what :func:`xenvirt.connect_async` gave.
        queues: as in :class:`BlockDriver`.
        queue_size: as in :class:`BlockDriver`.
    """

    def __init__(self, link: AsyncLink, *, queues: int | None = None, queue_size: int = 128) -> None:
        self._wanted_queues, self._queue_size = queues, queue_size
        super().__init__(link)

    async def read(self, offset: int, size: int, *, queue: int = 0) -> bytes:
        """As :meth:`BlockDriver.read`."""
        return await self._perform(self._read(offset, size, queue))

    async def write(self, offset: int, data: Buffer, *, queue: int = 0) -> None:
        """As :meth:`BlockDriver.write`."""
        await self._perform(self._write(offset, data, queue))

    async def flush(self, *, queue: int = 0) -> None:
        """As :meth:`BlockDriver.flush`."""
        await self._perform(self._flush(queue))

    async def discard(self, offset: int, size: int, *, queue: int = 0) -> None:
        """As :meth:`BlockDriver.discard`."""
        await self._perform(self._discard(offset, size, queue))

    async def write_zeroes(self, offset: int, size: int, *, unmap: bool = False, queue: int = 0) -> None:
        """As :meth:`BlockDriver.write_zeroes`."""
        await self._perform(self._write_zeroes(offset, size, unmap, queue))

    async def get_id(self, *, queue: int = 0) -> str:
        """As :meth:`BlockDriver.get_id`."""
        return await self._perform(self._get_id(queue))

    async def refresh(self) -> BlockConfig:
        """As :meth:`BlockDriver.refresh`."""
        self.config_space = await self.link.config(0, self._config_size(self.link))
        self.config = BlockConfig.from_bytes(self.config_space)
        return self.config

    async def set_writeback(self, writeback: bool) -> None:
        """As :meth:`BlockDriver.set_writeback`."""
        self._need(BlockFeature.CONFIG_WCE, "switch its cache")
        await self.link.write_config(BlockConfig.offset("writeback"), bytes([writeback]))
        await self.refresh()
