"""The requests of a block driver, without I/O (virtio 1.3, section 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio.block import (
    ID_SIZE,
    SECTOR_SIZE,
    BlockConfig,
    BlockFeature,
    DiscardWriteZeroes,
    RangeFlag,
    RequestHeader,
    RequestType,
    Status,
)
from xenvirt.virtio.config_fields import config_length
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.structure import Structure

from .driver import DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

MAX_TRANSFER = 128 * 1024
"""The most bytes of data that :meth:`read` and :meth:`write` put in one request; longer ones take several."""

STATUS_SIZE = 1


class BlockRequests(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests, and what the device said of
    itself.

    The request methods count in sectors of 512 bytes and check nothing that the device has to check, so that
    a test can ask for sectors beyond the end. Submit them for many in flight::

        pending = [link.submit(disk.read_request(sector, 8)) for sector in range(0, 256, 8)]
        blocks = [one.result() for one in pending]

    Attributes:
        config: the configuration space, as it was when the driver started.
        queues: how many queues run.
    """

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK
    wanted_features: ClassVar[int] = (
        BlockFeature.SIZE_MAX
        | BlockFeature.SEG_MAX
        | BlockFeature.GEOMETRY
        | BlockFeature.RO
        | BlockFeature.BLK_SIZE
        | BlockFeature.FLUSH
        | BlockFeature.TOPOLOGY
        | BlockFeature.CONFIG_WCE
        | BlockFeature.MQ
        | BlockFeature.DISCARD
        | BlockFeature.WRITE_ZEROES
        | BlockFeature.SECURE_ERASE
    )
    config_structure: ClassVar[type[Structure] | None] = BlockConfig

    config: BlockConfig
    queues: int
    _wanted_queues: int | None = None
    _queue_size: int = 128

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:
        there = max(link.queue_count, 1) if link.offered_features & BlockFeature.MQ else 1
        self.queues = min(self._wanted_queues or there, there)
        return (self._queue_size,) * self.queues

    def _config_size(self, link: LinkInfo) -> int:
        """Up to the last field that a negotiated feature speaks of (section 5.2.4): QEMU 7.2 has 60 bytes,
        not 96.
        """
        return config_length(self.device_id, link.features)

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = BlockConfig.from_bytes(space)

    # ---- what the device said

    @property
    def capacity(self) -> int:
        """The size of the disk in sectors of 512 bytes."""
        return self.config.capacity

    @property
    def size(self) -> int:
        """The size of the disk in bytes."""
        return self.config.capacity * SECTOR_SIZE

    @property
    def read_only(self) -> bool:
        """True if the device takes no writes."""
        return bool(self.features & BlockFeature.RO)

    # ---- one request each

    def read_request(self, sector: int, count: int, *, queue: int = 0) -> Request[bytes]:
        """Reads `count` sectors from `sector` on.

        Raises:
            ValueError: that takes more segments than the device allows (SEG_MAX, SIZE_MAX), or a number is
                negative.
        """
        size = count * SECTOR_SIZE
        what = f"read of {count} sectors at {sector}"
        segments = [end - start for start, end in self._segments(size, what)]

        def parse(answer: Answer) -> bytes:
            if answer.used < size:
                raise ResponseError(
                    f"{what}: the device says OK, and that it wrote {answer.used} bytes of {size + 1}",
                    Status.OK,
                )
            return b"".join(answer.buffers[:-1])

        return self._request(RequestType.IN, sector, what, queue, writable=segments, parse=parse)

    def write_request(self, sector: int, data: Buffer, *, queue: int = 0) -> Request[None]:
        """Writes whole sectors from `sector` on.

        Raises:
            ValueError: `data` is not a multiple of 512 bytes, takes more segments than the device allows, or
                `sector` is
                negative.
        """
        view = memoryview(data).cast("B")
        if len(view) % SECTOR_SIZE:
            raise ValueError(f"a write takes whole sectors of {SECTOR_SIZE} bytes, not {len(view)} bytes")
        what = f"write of {len(view) // SECTOR_SIZE} sectors at {sector}"
        segments = [view[start:end] for start, end in self._segments(len(view), what)]
        return self._request(RequestType.OUT, sector, what, queue, readable=segments, parse=_nothing)

    def flush_request(self, *, queue: int = 0) -> Request[None]:
        """Makes every write that was completed before durable."""
        return self._request(RequestType.FLUSH, 0, "flush", queue, parse=_nothing)

    def get_id_request(self, *, queue: int = 0) -> Request[str]:
        """Asks for the device's serial number, at most 20 bytes."""
        return self._request(RequestType.GET_ID, 0, "get id", queue, writable=[ID_SIZE], parse=_identity)

    def discard_request(self, ranges: Sequence[tuple[int, int]], *, queue: int = 0) -> Request[None]:
        """Says that ranges are not needed any more. A range is its first sector and the number of its
        sectors.
        """
        what = f"discard of {_describe(ranges)}"
        return self._range_request(RequestType.DISCARD, ranges, 0, what, queue)

    def write_zeroes_request(
        self, ranges: Sequence[tuple[int, int]], *, unmap: bool = False, queue: int = 0
    ) -> Request[None]:
        """Makes ranges read as zeroes. With `unmap` the device may deallocate them."""
        what = f"zeroing of {_describe(ranges)}"
        return self._range_request(
            RequestType.WRITE_ZEROES, ranges, RangeFlag.UNMAP if unmap else 0, what, queue
        )

    def raw_request(
        self,
        kind: int,
        sector: int = 0,
        *,
        readable: Sequence[Buffer] = (),
        writable: Sequence[int] = (),
        queue: int = 0,
    ) -> Request[tuple[int, Answer]]:
        """Any request, for tests: gives the status byte as it is, whatever it is, and the answer.

        Args:
            kind: the request type, also one that does not exist.
            sector: the header's sector.
            readable: what follows the header.
            writable: the sizes of the buffers before the status byte.
            queue: the queue that it goes to.
        """
        header = RequestHeader(kind, sector=sector).to_bytes()
        return Request(
            queue,
            [header, *readable],
            [*writable, STATUS_SIZE],
            lambda answer: (_status_byte(answer), answer),
            f"request of type {kind} at {sector}",
        )

    # ---- whole operations, in bytes

    def _read(self, offset: int, size: int, queue: int) -> Plan[bytes]:
        _check_range(offset, size)
        if size == 0:
            return b""
        first, last = offset // SECTOR_SIZE, -(-(offset + size) // SECTOR_SIZE)
        step = self._step()
        parts: Sequence[bytes] = yield [
            self.read_request(sector, min(step, last - sector), queue=queue)
            for sector in range(first, last, step)
        ]
        skip = offset - first * SECTOR_SIZE
        if skip == 0 and len(parts) == 1 and len(parts[0]) == size:
            return parts[0]
        return b"".join(parts)[skip : skip + size]

    def _write(self, offset: int, data: Buffer, queue: int) -> Plan[None]:
        view = memoryview(data).cast("B")
        size = len(view)
        _check_range(offset, size)
        if size == 0:
            return
        first, last = offset // SECTOR_SIZE, -(-(offset + size) // SECTOR_SIZE)
        head, tail = offset - first * SECTOR_SIZE, last * SECTOR_SIZE - (offset + size)
        if head or tail:
            # The sectors at the ends are only partly ours: their other bytes have to be read first.
            edges = sorted({first} if not tail else {last - 1} if not head else {first, last - 1})
            found: Sequence[bytes] = yield [self.read_request(sector, 1, queue=queue) for sector in edges]
            old = dict(zip(edges, found, strict=True))
            before = old[first][:head] if head else b""
            after = old[last - 1][SECTOR_SIZE - tail :] if tail else b""
            view = memoryview(b"".join((before, view, after)))
        step = self._step() * SECTOR_SIZE
        yield [
            self.write_request(first + start // SECTOR_SIZE, view[start : start + step], queue=queue)
            for start in range(0, len(view), step)
        ]

    def _flush(self, queue: int) -> Plan[None]:
        if self.features & BlockFeature.FLUSH:
            yield [self.flush_request(queue=queue)]

    def _get_id(self, queue: int) -> Plan[str]:
        (name,) = yield [self.get_id_request(queue=queue)]
        text: str = name
        return text

    def _discard(self, offset: int, size: int, queue: int) -> Plan[None]:
        self._need(BlockFeature.DISCARD, "discard")
        config = self.config
        for ranges in _batches(offset, size, config.max_discard_sectors, config.max_discard_seg):
            yield [self.discard_request(ranges, queue=queue)]

    def _write_zeroes(self, offset: int, size: int, unmap: bool, queue: int) -> Plan[None]:
        self._need(BlockFeature.WRITE_ZEROES, "write zeroes")
        config = self.config
        for ranges in _batches(offset, size, config.max_write_zeroes_sectors, config.max_write_zeroes_seg):
            yield [self.write_zeroes_request(ranges, unmap=unmap, queue=queue)]

    # ---- parts

    def _request(
        self,
        kind: RequestType,
        sector: int,
        what: str,
        queue: int,
        *,
        readable: Sequence[Buffer] = (),
        writable: Sequence[int] = (),
        parse: Callable[[Answer], T],
    ) -> Request[T]:
        header = RequestHeader(kind, sector=sector).to_bytes()

        def checked(answer: Answer) -> T:
            _check_status(_status_byte(answer), what)
            return parse(answer)

        return Request(queue, [header, *readable], [*writable, STATUS_SIZE], checked, what)

    def _range_request(
        self, kind: RequestType, ranges: Sequence[tuple[int, int]], flags: int, what: str, queue: int
    ) -> Request[None]:
        data = b"".join(DiscardWriteZeroes(sector, count, flags).to_bytes() for sector, count in ranges)
        return self._request(kind, 0, what, queue, readable=[data], parse=_nothing)

    def _segments(self, size: int, what: str) -> list[tuple[int, int]]:
        """Cuts a request's data as the device wants it: the limits of SIZE_MAX and SEG_MAX count where
        negotiated.
        """
        largest = self.config.size_max if self.features & BlockFeature.SIZE_MAX else 0
        most = self.config.seg_max if self.features & BlockFeature.SEG_MAX else 0
        step = largest or size or 1
        segments = [(start, min(start + step, size)) for start in range(0, size, step)]
        if most and len(segments) > most:
            raise ValueError(
                f"{what} takes {len(segments)} segments of at most {step} bytes; "
                f"the device allows {most} in a request"
            )
        return segments

    def _step(self) -> int:
        """How many sectors :meth:`_read` and :meth:`_write` put in one request."""
        largest = self.config.size_max if self.features & BlockFeature.SIZE_MAX else 0
        most = self.config.seg_max if self.features & BlockFeature.SEG_MAX else 0
        limit = MAX_TRANSFER if not largest else min(MAX_TRANSFER, largest * (most or 1))
        return max(limit // SECTOR_SIZE, 1)

    def _need(self, feature: BlockFeature, what: str) -> None:
        if not self.features & feature:
            raise RequestUnsupportedError(
                f"the device cannot {what}: {feature.name} was not negotiated (features {self.features:#x})",
                Status.UNSUPP,
            )


def _nothing(_answer: Answer) -> None:
    return None


def _identity(answer: Answer) -> str:
    return answer.buffers[0].split(b"\0", 1)[0].decode("ascii", "replace")


def _status_byte(answer: Answer) -> int:
    last = answer.buffers[-1]
    return last[0] if last else -1


def _check_status(status: int, what: str) -> None:
    if status == Status.OK:
        return
    if status == Status.UNSUPP:
        raise RequestUnsupportedError(f"{what}: the device does not know this request (UNSUPP)", status)
    try:
        name = Status(status).name
    except ValueError:
        raise ResponseError(
            f"{what}: the device wrote no status, or one that does not exist ({status:#x})", status
        ) from None
    raise RequestFailedError(f"{what}: the device answered {name}", status)


def _describe(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{count} sectors at {sector}" for sector, count in ranges) or "no range"


def _check_range(offset: int, size: int) -> None:
    if offset < 0 or size < 0:
        raise ValueError(f"offset {offset} and size {size} must not be negative")


def _batches(offset: int, size: int, most_sectors: int, most_ranges: int) -> Iterator[list[tuple[int, int]]]:
    """Cuts a range into ranges of the size, and requests of the number of ranges, that the device allows."""
    _check_range(offset, size)
    if offset % SECTOR_SIZE or size % SECTOR_SIZE:
        raise ValueError(f"offset {offset} and size {size} must be multiples of {SECTOR_SIZE} bytes")
    first, last = offset // SECTOR_SIZE, (offset + size) // SECTOR_SIZE
    step = most_sectors or 0xFFFF_FFFF
    ranges = [(sector, min(step, last - sector)) for sector in range(first, last, step)]
    together = most_ranges or 1
    for start in range(0, len(ranges), together):
        yield ranges[start : start + together]
