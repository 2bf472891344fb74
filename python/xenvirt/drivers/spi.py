"""The driver of the SPI controller (virtio 1.4, section "SPI Controller Device")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.spi import Result, SpiConfig, TransferHeader
from xenvirt.virtio.structure import Structure

from .driver import AsyncDriver, Driver, DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

QUEUE = 0


class SpiCore(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests.

    Attributes:
        config: the configuration space: how many chips there are, and which modes the controller knows.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SPI
    config_structure: ClassVar[type[Structure] | None] = SpiConfig

    config: SpiConfig

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - one queue, whatever the link
        return (128,)

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = SpiConfig.from_bytes(space)

    @staticmethod
    def transfer_request(header: TransferHeader, data: Buffer = b"", size: int = 0) -> Request[bytes]:
        """One transfer, checked by nobody but the device.

        Args:
            header: the chip, its mode and its speed.
            data: the bytes to send; none to only receive.
            size: how many bytes to receive; 0 to only send. With data it is as long as the data (full
                duplex).

        Raises:
            ValueError: neither is there, or the two are not equally long.
        """
        sent = bytes(data)
        if size < 0 or not (sent or size):
            raise ValueError(f"an SPI transfer of {len(sent)} bytes to send and {size} to receive")
        if sent and size not in (0, len(sent)):
            raise ValueError(
                f"SPI receives a byte for each that it sends: {len(sent)} to send, {size} to receive"
            )
        what = f"SPI transfer of {len(sent) or size} bytes with chip {header.chip_select_id}"

        def parse(answer: Answer) -> bytes:
            result = answer.buffers[-1][0]
            if result == Result.PARAM_ERR:
                raise RequestUnsupportedError(
                    f"{what}: the controller cannot do that (PARAM_ERR): {header}", result
                )
            if result == Result.TRANS_ERR:
                raise RequestFailedError(f"{what}: the controller failed (TRANS_ERR)", result)
            if result != Result.OK:
                raise ResponseError(
                    f"{what}: the device wrote no result, or one that does not exist ({result:#x})", result
                )
            return answer.buffers[0] if size else b""

        front = header.to_bytes()
        return Request(QUEUE, [front, sent] if sent else [front], [size, 1] if size else [1], parse, what)

    def _transfer(self, header: TransferHeader, data: Buffer, size: int) -> Plan[bytes]:
        (received,) = yield [self.transfer_request(header, data, size)]
        result: bytes = received
        return result


def _header(chip: int, speed: int, mode: int, bits_per_word: int) -> TransferHeader:
    return TransferHeader(
        chip_select_id=chip, bits_per_word=bits_per_word, mode=mode, freq=speed, tx_nbits=1, rx_nbits=1
    )


class SpiDriver(SpiCore, Driver):
    """Speaks to the chips on an SPI bus.

    ::

        with connect("spi.sock0") as link, SpiDriver(link) as bus:
            identity = bus.transfer(b"\\x9f\\0\\0\\0", speed=1_000_000)[1:]

    The arguments of its methods: `chip` is the number of the chip select line, `speed` is in Hz, `mode` is a
    :class:`~xenvirt.virtio.spi.Mode`, and words have `bits_per_word` bits. :meth:`transfer_request` takes all
    the rest.

    Raises, in each operation:
        RequestUnsupportedError: the controller cannot do it as asked (PARAM_ERR).
        RequestFailedError: it tried and failed (TRANS_ERR).
        ResponseError: it wrote no result that exists.
        LinkTimeoutError: it did not answer in time.
    """

    def transfer(
        self, data: Buffer, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8
    ) -> bytes:
        """Sends `data` and receives as many bytes at the same time."""
        size = memoryview(data).nbytes
        return self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), data, size))

    def write(
        self, data: Buffer, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8
    ) -> None:
        """Sends `data`; what the chip says meanwhile is dropped."""
        self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), data, 0))

    def read(self, size: int, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8) -> bytes:
        """Receives `size` bytes; what the chip hears meanwhile is the controller's choice."""
        return self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), b"", size))


class AsyncSpiDriver(SpiCore, AsyncDriver):
    """Speaks to the chips on an SPI bus, for asyncio."""

    async def transfer(
        self, data: Buffer, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8
    ) -> bytes:
        """As :meth:`SpiDriver.transfer`."""
        size = memoryview(data).nbytes
        return await self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), data, size))

    async def write(
        self, data: Buffer, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8
    ) -> None:
        """As :meth:`SpiDriver.write`."""
        await self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), data, 0))

    async def read(
        self, size: int, *, speed: int, chip: int = 0, mode: int = 0, bits_per_word: int = 8
    ) -> bytes:
        """As :meth:`SpiDriver.read`."""
        return await self._perform(self._transfer(_header(chip, speed, mode, bits_per_word), b"", size))
