"""The driver of the entropy device (virtio 1.3, section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xenvirt.errors import ResponseError
from xenvirt.virtio.entropy import REQUEST_QUEUE
from xenvirt.virtio.ids import DeviceId

from .driver import AsyncDriver, Driver, DriverCore, Plan
from .request import Answer, LinkInfo, Request

MAX_REQUEST = 65536
"""The largest buffer in bytes that is handed to the device at once."""


class EntropyCore(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - one queue, whatever the link
        return (64,)

    @staticmethod
    def read_request(size: int) -> Request[bytes]:
        """Asks for at most `size` random bytes, one buffer; the device gives at least one.

        Raises:
            ValueError: `size` is not between 1 and 65536.
        """
        if not 1 <= size <= MAX_REQUEST:
            raise ValueError(f"a request for random bytes takes 1 to {MAX_REQUEST} bytes, not {size}")

        def parse(answer: Answer) -> bytes:
            if not 1 <= answer.used <= size:
                raise ResponseError(
                    f"the entropy device says it wrote {answer.used} bytes to a buffer of {size}: "
                    f"it must write at least one (virtio 1.3, section 5.4.6.2), and at most {size}"
                )
            return answer.data()

        return Request(REQUEST_QUEUE, (), (size,), parse, f"read of {size} random bytes")

    def _read(self, size: int) -> Plan[bytes]:
        if size < 0:
            raise ValueError(f"cannot read {size} bytes")
        data = bytearray()
        while len(data) < size:
            (more,) = yield [self.read_request(min(size - len(data), MAX_REQUEST))]
            data += more
        return bytes(data)


class EntropyDriver(EntropyCore, Driver):
    """Draws random bytes from an entropy device.

    ::

        with connect("rng.sock") as link, EntropyDriver(link) as rng:
            print(rng.read(32).hex())
    """

    def read(self, size: int) -> bytes:
        """Exactly `size` random bytes; asks again until it has them.

        Raises:
            ResponseError: the device gave none, or says it gave more than there was room for.
            LinkTimeoutError: it did not answer in time.
        """
        return self._perform(self._read(size))


class AsyncEntropyDriver(EntropyCore, AsyncDriver):
    """Draws random bytes from an entropy device, for asyncio."""

    async def read(self, size: int) -> bytes:
        """As :meth:`EntropyDriver.read`."""
        return await self._perform(self._read(size))
