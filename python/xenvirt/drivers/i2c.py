"""The driver of the I2C adapter (virtio 1.3, section 5.12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from xenvirt.errors import RequestFailedError, ResponseError
from xenvirt.virtio.features import Feature
from xenvirt.virtio.i2c import I2cFeature, RequestFlag, RequestHeader, Status
from xenvirt.virtio.ids import DeviceId

from .driver import AsyncDriver, Driver, DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

QUEUE = 0
HIGHEST_ADDRESS = 0x7F
"""Addresses have 7 bits here, as in Linux's driver; the specification has 10-bit ones too."""


@dataclass(frozen=True)
class Read:
    """One message of a transfer: read `size` bytes from the chip at `address` (7 bits)."""

    address: int
    size: int


@dataclass(frozen=True)
class Write:
    """One message of a transfer: write `data` to the chip at `address` (7 bits). No data at all is a probe of
    the address.
    """

    address: int
    data: Buffer


Message: TypeAlias = Read | Write


class I2cCore(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests."""

    device_id: ClassVar[DeviceId] = DeviceId.I2C
    # 5.12.6.1: "A driver MUST NOT send any request if the feature ZERO_LENGTH_REQUEST was not negotiated".
    needed_features: ClassVar[int] = Feature.VERSION_1 | I2cFeature.ZERO_LENGTH_REQUEST

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - one queue, whatever the link
        return (128,)

    @staticmethod
    def request(message: Message, *, more: bool = False) -> Request[bytes]:
        """One message: gives what was read, nothing for a write.

        Args:
            message: what to do.
            more: the message after this one belongs to it, and fails with it (FAIL_NEXT).

        Raises:
            ValueError: the address has more than 7 bits, or a size is negative.
        """
        address = message.address
        if not 0 <= address <= HIGHEST_ADDRESS:
            raise ValueError(f"I2C address {address:#x}: the driver takes 0 to {HIGHEST_ADDRESS:#x} (7 bits)")
        flags = int(RequestFlag.FAIL_NEXT) if more else 0
        if isinstance(message, Read):
            size, data = message.size, b""
            if size < 0:
                raise ValueError(f"cannot read {size} bytes")
            flags |= RequestFlag.READ
            what = f"read of {size} bytes from I2C address {address:#x}"
        else:
            size, data = 0, bytes(message.data)
            what = f"write of {len(data)} bytes to I2C address {address:#x}"

        def parse(answer: Answer) -> bytes:
            status = answer.buffers[-1][0]
            if status == Status.ERR:
                raise RequestFailedError(f"{what}: the device answered ERR", status)
            if status != Status.OK:
                raise ResponseError(
                    f"{what}: the device wrote no status, or one that does not exist ({status:#x})", status
                )
            return answer.buffers[0] if size else b""

        header = RequestHeader(address << 1, flags=flags).to_bytes()
        # Where there is no data there is no buffer for it either: backends refuse an empty one.
        return Request(QUEUE, [header, data] if data else [header], [size, 1] if size else [1], parse, what)

    def _transfer(self, messages: Sequence[Message]) -> Plan[list[bytes]]:
        last = len(messages) - 1
        results: Sequence[bytes] = yield [
            self.request(message, more=index < last) for index, message in enumerate(messages)
        ]
        return list(results)

    def _write_read(self, address: int, data: Buffer, size: int) -> Plan[bytes]:
        results = yield from self._transfer([Write(address, data), Read(address, size)])
        return results[1]

    def _one(self, message: Message) -> Plan[bytes]:
        results = yield from self._transfer([message])
        return results[0]


class I2cDriver(I2cCore, Driver):
    """Speaks to the chips on an I2C bus.

    ::

        with connect("i2c.sock0") as link, I2cDriver(link) as bus:
            bus.write(0x50, b"\\x00hello")
            assert bus.write_read(0x50, b"\\x00", 5) == b"hello"

    Raises, in each operation:
        RequestFailedError: the device answered ERR: the chip did not acknowledge, or the adapter failed.
        ResponseError: it wrote no status that exists.
        LinkTimeoutError: it did not answer in time.
    """

    def read(self, address: int, size: int) -> bytes:
        """Reads `size` bytes from the chip at `address` (7 bits)."""
        return self._perform(self._one(Read(address, size)))

    def write(self, address: int, data: Buffer) -> None:
        """Writes `data` to the chip at `address` (7 bits)."""
        self._perform(self._one(Write(address, data)))

    def write_read(self, address: int, data: Buffer, size: int) -> bytes:
        """Writes, and reads without giving up the bus in between: how a register of a chip is read."""
        return self._perform(self._write_read(address, data, size))

    def transfer(self, messages: Sequence[Message]) -> list[bytes]:
        """Does several messages as one combined transfer: they are made available together, and if one fails
        those after it fail too.

        Returns:
            For each message what was read; nothing for a write.
        """
        return self._perform(self._transfer(messages))


class AsyncI2cDriver(I2cCore, AsyncDriver):
    """Speaks to the chips on an I2C bus, for asyncio."""

    async def read(self, address: int, size: int) -> bytes:
        """As :meth:`I2cDriver.read`."""
        return await self._perform(self._one(Read(address, size)))

    async def write(self, address: int, data: Buffer) -> None:
        """As :meth:`I2cDriver.write`."""
        await self._perform(self._one(Write(address, data)))

    async def write_read(self, address: int, data: Buffer, size: int) -> bytes:
        """As :meth:`I2cDriver.write_read`."""
        return await self._perform(self._write_read(address, data, size))

    async def transfer(self, messages: Sequence[Message]) -> list[bytes]:
        """As :meth:`I2cDriver.transfer`."""
        return await self._perform(self._transfer(messages))
