"""The block device over a raw image (virtio 1.3, section 5.2)."""

from __future__ import annotations

import logging
import os
import struct
import sys
from dataclasses import replace
from itertools import accumulate
from types import TracebackType
from typing import ClassVar, Final, Self

from xenvirt import Batch, Device, DeviceId, Mask, Session, VirtQueue
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

from .image import RawImage

log = logging.getLogger("xenvirt.devices")

MAX_RANGE_SECTORS: Final = 1 << 22
"""The most sectors in one range of DISCARD or WRITE_ZEROES: 2 GiB, as QEMU has it."""
MAX_RANGES: Final = 32
"""The most ranges in one request."""
PHYSICAL_BLOCK: Final = 4096
"""What file systems and disks write at once, in bytes."""
BATCH: Final = 256


class BlockDevice(Device):
    """Serves a raw image as a disk.

    Reads, writes, flush, discard, write zeroes and get id; several queues; a read-only mode. A request that
    does not lie inside the disk, that has not whole sectors, or that the storage fails, is answered by IOERR,
    one that we do not know by UNSUPP. Data goes straight between the image and the guest's memory.

    With ``thread_per_queue`` each queue is served by a thread of its own. The image is closed by
    :meth:`close`, or at the end of a ``with`` block.

    Args:
        image: the path of the image, or a :class:`RawImage`, which is then closed together with the device.
        read_only: refuse writes of any kind, and tell the driver (VIRTIO_BLK_F_RO). By default as the image
            is.
        queues: how many queues there are, 1 to 256.
        queue_size: the largest size of each ring, a power of two.
        serial: what GET_ID answers, at most 20 bytes; by default the end of the file's name.
        thread_per_queue: serve each queue on its own thread.

    Raises:
        ValueError: a number or the serial is out of range, or the image is too small.
        OSError: the image cannot be opened (see :class:`RawImage`).
    """

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK

    def __init__(
        self,
        image: str | os.PathLike[str] | RawImage,
        *,
        read_only: bool | None = None,
        queues: int = 1,
        queue_size: int = 256,
        serial: str | None = None,
        thread_per_queue: bool = False,
    ) -> None:
        if not 1 <= queues <= 256:
            raise ValueError(f"queues is {queues}; a device has 1 to 256")
        self._id = _serial_bytes(image, serial)
        self.image = image if isinstance(image, RawImage) else RawImage(image, read_only=bool(read_only))
        self.read_only = self.image.read_only or bool(read_only)
        self.queue_sizes = (queue_size,) * queues
        self.thread_per_queue = thread_per_queue
        self.features = (
            BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | BlockFeature.TOPOLOGY | BlockFeature.FLUSH
        )
        if self.read_only:
            self.features |= BlockFeature.RO
        else:
            self.features |= BlockFeature.CONFIG_WCE | BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES
        self._size = self.image.size // SECTOR_SIZE * SECTOR_SIZE
        self._write_through = False
        self._session_features = 0
        blocks = PHYSICAL_BLOCK // SECTOR_SIZE
        ranges = 0 if self.read_only else MAX_RANGES
        self.config: BlockConfig = BlockConfig(
            capacity=self._size // SECTOR_SIZE,
            seg_max=max(queue_size - 2, 1),  # header and status take a descriptor each
            blk_size=SECTOR_SIZE,
            physical_block_exp=blocks.bit_length() - 1,
            min_io_size=blocks,
            writeback=1,
            num_queues=queues,
            max_discard_sectors=MAX_RANGE_SECTORS if ranges else 0,
            max_discard_seg=ranges,
            discard_sector_alignment=blocks if ranges else 0,
            max_write_zeroes_sectors=MAX_RANGE_SECTORS if ranges else 0,
            max_write_zeroes_seg=ranges,
            write_zeroes_may_unmap=1 if ranges else 0,
        )

    # ---- its life

    def activate(self, session: Session) -> None:
        """Decides whether writes have to be durable at once (section 5.2.6.2): a driver without FLUSH cannot
        ask.
        """
        self._session_features = session.features
        self._write_through = not session.features & BlockFeature.FLUSH
        if self._write_through and session.features & BlockFeature.CONFIG_WCE:
            self.update_config(replace(self.config, writeback=0))

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver switches the cache; every other field is the device's, and gets its value back."""
        at = BlockConfig.offset("writeback") - offset
        if self._session_features & BlockFeature.CONFIG_WCE and 0 <= at < len(data):
            self.config = replace(self.config, writeback=int(data[at] != 0))
            self._write_through = not self.config.writeback
        if self.config.to_bytes()[offset : offset + len(data)] != data:
            self.update_config(self.config)

    def reset(self) -> None:
        """The next driver finds the cache as the first one did."""
        self._session_features = 0
        if not self.config.writeback:
            self.update_config(replace(self.config, writeback=1))

    def resize(self, size: int) -> None:
        """Gives the disk another size, in bytes, and tells the driver.

        Raises:
            ValueError: `size` is not a multiple of 512, or 0.
            OSError: the image cannot be changed.
        """
        if size < SECTOR_SIZE or size % SECTOR_SIZE:
            raise ValueError(
                f"a disk has whole sectors of {SECTOR_SIZE} bytes, at least one; not {size} bytes"
            )
        self.image.resize(size)
        self._size = self.image.size // SECTOR_SIZE * SECTOR_SIZE
        self.update_config(replace(self.config, capacity=self._size // SECTOR_SIZE))

    def close(self) -> None:
        """Closes the image. To be called when the device is not served any more."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- requests

    def process(self, queue: VirtQueue) -> None:
        """Answers what is in the ring, up to 256 requests at a time."""
        while batch := queue.pop_batch(header=RequestHeader, trailer=1, limit=BATCH):
            for kind, requests in batch.group_by("type"):
                match kind:
                    case RequestType.IN:
                        self._read(requests)
                    case RequestType.OUT:
                        self._write(requests)
                    case RequestType.FLUSH:
                        requests.write_trailer(Status.OK if self._flush() else Status.IOERR)
                    case RequestType.GET_ID:
                        done = requests.write_from(self._id, [0] * len(requests))
                        requests.write_trailer(Status.OK, where=done, otherwise=Status.IOERR)
                    case RequestType.DISCARD | RequestType.WRITE_ZEROES if not self.read_only:
                        self._change_ranges(RequestType(kind), requests)
                    case RequestType.DISCARD | RequestType.WRITE_ZEROES:
                        requests.write_trailer(Status.IOERR)
                    case _:
                        requests.write_trailer(Status.UNSUPP)
            batch.complete()

    def _read(self, requests: Batch) -> None:
        requests = _whole_sectors(requests, requests.writable)
        sectors = requests.header["sector"]
        done = requests.write_from_file(self.image.fileno(), sectors, unit=SECTOR_SIZE, limit=self._size)
        requests.write_trailer(Status.OK, where=done, otherwise=Status.IOERR)

    def _write(self, requests: Batch) -> None:
        if self.read_only:
            requests.write_trailer(Status.IOERR)
            return
        requests = _whole_sectors(requests, requests.readable)
        sectors = requests.header["sector"]
        done = requests.read_into_file(self.image.fileno(), sectors, unit=SECTOR_SIZE, limit=self._size)
        if self._write_through and not self._flush():
            requests.write_trailer(Status.IOERR)
            return
        requests.write_trailer(Status.OK, where=done, otherwise=Status.IOERR)

    def _flush(self) -> bool:
        try:
            self.image.flush()
        except OSError as error:
            log.warning("flushing %s failed: %s", self.image.path, error)
            return False
        return True

    def _change_ranges(self, kind: RequestType, requests: Batch) -> None:
        most = MAX_RANGES * DiscardWriteZeroes.size()
        fits = Mask([size <= most for size in requests.readable])
        requests.select(~fits).write_trailer(Status.IOERR)
        requests = requests.select(fits)
        starts = list(accumulate(requests.readable, initial=0))
        data = bytearray(starts.pop())
        requests.read_into(data, starts)
        statuses = [
            self._change(kind, bytes(data[start : start + size]))
            for start, size in zip(starts, requests.readable, strict=True)
        ]
        if self._write_through and not self._flush():
            statuses = [Status.IOERR] * len(statuses)
        for status in set(statuses):
            requests.select(Mask([one is status for one in statuses])).write_trailer(status)

    def _change(self, kind: RequestType, data: bytes) -> Status:
        """Does one DISCARD or WRITE_ZEROES request (section 5.2.6.2): all of it is checked before any of it
        is done.
        """
        if (
            not data
            or len(data) % DiscardWriteZeroes.size()
            or len(data) > MAX_RANGES * DiscardWriteZeroes.size()
        ):
            return Status.IOERR
        ranges = list(struct.iter_unpack("<QII", data))
        known = RangeFlag.UNMAP if kind is RequestType.WRITE_ZEROES else 0
        if any(flags & ~int(known) for _, _, flags in ranges):
            return Status.UNSUPP
        capacity = self._size // SECTOR_SIZE
        if any(
            count > MAX_RANGE_SECTORS or count > capacity or sector > capacity - count
            for sector, count, _ in ranges
        ):
            return Status.IOERR
        try:
            for sector, count, flags in ranges:
                self._change_range(
                    kind, sector * SECTOR_SIZE, count * SECTOR_SIZE, bool(flags & RangeFlag.UNMAP)
                )
        except OSError as error:
            log.warning("%s of %s failed: %s", kind.name, self.image.path, error)
            return Status.IOERR
        return Status.OK

    def _change_range(self, kind: RequestType, offset: int, size: int, unmap: bool) -> None:
        if size == 0:
            return
        if kind is RequestType.DISCARD:
            self.image.discard(offset, size)
        else:
            self.image.write_zeroes(offset, size, unmap=unmap)


_NOT_SECTORS: Final = int.from_bytes((SECTOR_SIZE - 1).to_bytes(4, sys.byteorder) * BATCH, sys.byteorder)
"""A mask for the lengths of a whole batch, taken as one number: the bits that whole sectors leave 0."""


def _whole_sectors(requests: Batch, lengths: memoryview) -> Batch:
    """The requests whose data is whole sectors; the others are answered by IOERR (section 5.2.6.1).

    Nearly always these are all, so that is found out for the whole batch at once.
    """
    if not int.from_bytes(lengths, sys.byteorder) & _NOT_SECTORS:
        return requests
    whole = Mask([length % SECTOR_SIZE == 0 for length in lengths])
    requests.select(~whole).write_trailer(Status.IOERR)
    return requests.select(whole)


def _serial_bytes(image: str | os.PathLike[str] | RawImage, serial: str | None) -> bytes:
    if serial is None:
        path = image.path if isinstance(image, RawImage) else os.fspath(image)
        return os.fsencode(os.path.basename(path))[-ID_SIZE:].ljust(ID_SIZE, b"\0")  # noqa: PTH119 - bytes are wanted
    raw = serial.encode()
    if len(raw) > ID_SIZE:
        raise ValueError(f"serial {serial!r} has {len(raw)} bytes; GET_ID gives at most {ID_SIZE}")
    return raw.ljust(ID_SIZE, b"\0")
