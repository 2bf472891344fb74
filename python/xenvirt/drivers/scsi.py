"""The driver of the SCSI host (virtio 1.3, section 5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenvirt.virtio.sense import Capacity, Inquiry

from .driver import AsyncDriver, Driver
from .scsi_requests import CommandResult, ScsiRequests

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AsyncScsiDriver", "CommandResult", "ScsiDriver"]


class ScsiDriver(ScsiRequests, Driver):
    """Speaks to the units of a SCSI host.

    ::

        with connect("scsi.sock") as link, ScsiDriver(link) as scsi:
            print(scsi.inquiry().product, scsi.read_capacity().size)
            scsi.write(0, bytes(512))

    Each method takes the `target` and the unit in it (`lun`); positions and counts are in blocks of the unit.
    A unit that answers UNIT ATTENTION is asked again. Long transfers take several commands, which run side by
    side.

    Raises, in each operation:
        CheckConditionError: the unit refuses or fails, with its sense data decoded.
        RequestFailedError: the host has no such target, or did not get as far as the unit.
        ResponseError: the answer makes no sense.
        LinkTimeoutError: there was none in time.
    """

    def test_unit_ready(self, *, target: int = 0, lun: int = 0) -> None:
        """Returns if the unit is ready."""
        self._perform(self._test_unit_ready(target, lun))

    def inquiry(self, *, target: int = 0, lun: int = 0) -> Inquiry:
        """What the unit says of itself. One that is not there has device type 0x1F."""
        return self._perform(self._inquiry(target, lun))

    def read_capacity(self, *, target: int = 0, lun: int = 0) -> Capacity:
        """How many blocks the unit has, and how large they are."""
        return self._perform(self._read_capacity(target, lun))

    def read(self, block: int, count: int, *, target: int = 0, lun: int = 0) -> bytes:
        """Reads `count` blocks from `block` on: READ(10), or READ(16) where the numbers need it."""
        return self._perform(self._read(block, count, target, lun))

    def write(self, block: int, data: Buffer, *, target: int = 0, lun: int = 0) -> None:
        """Writes whole blocks from `block` on: WRITE(10), or WRITE(16) where the numbers need it.

        Raises:
            ValueError: `data` is not a whole number of blocks.
        """
        self._perform(self._write(block, data, target, lun))

    def synchronize_cache(self, *, target: int = 0, lun: int = 0) -> None:
        """Returns once every write that has returned before is durable."""
        self._perform(self._synchronize_cache(target, lun))

    def command(
        self, cdb: bytes, *, data: Buffer = b"", size: int = 0, target: int = 0, lun: int = 0
    ) -> CommandResult:
        """Any command, once; its result as it is."""
        return self.link.run(self.command_request(cdb, data=data, size=size, target=target, lun=lun))


class AsyncScsiDriver(ScsiRequests, AsyncDriver):
    """Speaks to the units of a SCSI host, for asyncio."""

    async def test_unit_ready(self, *, target: int = 0, lun: int = 0) -> None:
        """As :meth:`ScsiDriver.test_unit_ready`."""
        await self._perform(self._test_unit_ready(target, lun))

    async def inquiry(self, *, target: int = 0, lun: int = 0) -> Inquiry:
        """As :meth:`ScsiDriver.inquiry`."""
        return await self._perform(self._inquiry(target, lun))

    async def read_capacity(self, *, target: int = 0, lun: int = 0) -> Capacity:
        """As :meth:`ScsiDriver.read_capacity`."""
        return await self._perform(self._read_capacity(target, lun))

    async def read(self, block: int, count: int, *, target: int = 0, lun: int = 0) -> bytes:
        """As :meth:`ScsiDriver.read`."""
        return await self._perform(self._read(block, count, target, lun))

    async def write(self, block: int, data: Buffer, *, target: int = 0, lun: int = 0) -> None:
        """As :meth:`ScsiDriver.write`."""
        await self._perform(self._write(block, data, target, lun))

    async def synchronize_cache(self, *, target: int = 0, lun: int = 0) -> None:
        """As :meth:`ScsiDriver.synchronize_cache`."""
        await self._perform(self._synchronize_cache(target, lun))

    async def command(
        self, cdb: bytes, *, data: Buffer = b"", size: int = 0, target: int = 0, lun: int = 0
    ) -> CommandResult:
        """As :meth:`ScsiDriver.command`."""
        return await self.link.run(self.command_request(cdb, data=data, size=size, target=target, lun=lun))
