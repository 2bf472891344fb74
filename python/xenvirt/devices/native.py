"""Block devices whose requests are answered in Rust: no Python between kick and answer."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import ClassVar, NamedTuple

from xenvirt import Device, DeviceId, Session, VirtQueue
from xenvirt._native import FileBlock, NullBlock
from xenvirt.errors import RingError
from xenvirt.virtio.block import SECTOR_SIZE, BlockConfig, BlockFeature

from .block import PHYSICAL_BLOCK, BlockDevice
from .image import RawImage

log = logging.getLogger("xenvirt.devices")


class StorageCounters(NamedTuple):
    """How many operations the storage has ended, well or not, since the device was made."""

    reads: int
    writes: int
    syncs: int
    """Of fdatasync: one for each FLUSH, and for each write of a driver that cannot flush."""
    allocations: int
    """Of fallocate: what DISCARD and WRITE_ZEROES become."""


class NativeBlockDevice(BlockDevice):
    """As :class:`BlockDevice`, with its requests answered in Rust.

    What the page cache can do is done at once. What has to wait for the storage, io_uring does beside us,
    many requests at a time; requests are answered in the order in which they end. Where io_uring is not
    allowed (an old kernel, a container's seccomp filter, the sysctl ``kernel.io_uring_disabled``) each
    request is a system call that waits; :attr:`storage` says which it is.

    When the driver goes away, what the kernel has begun is waited for, and what it has not begun is
    cancelled, before the guest's memory is let go of.

    Args:
        image: as for :class:`BlockDevice`; the other arguments too.
        io_uring: false uses system calls.

    Raises:
        ValueError, OSError: as :class:`BlockDevice`.
    """

    def __init__(
        self,
        image: str | os.PathLike[str] | RawImage,
        *,
        read_only: bool | None = None,
        queues: int = 1,
        queue_size: int = 256,
        serial: str | None = None,
        thread_per_queue: bool = False,
        io_uring: bool = True,
    ) -> None:
        super().__init__(
            image,
            read_only=read_only,
            queues=queues,
            queue_size=queue_size,
            serial=serial,
            thread_per_queue=thread_per_queue,
        )
        self._native = FileBlock(
            self.image, self._size, self._id, read_only=self.read_only, io_uring=io_uring
        )

    @property
    def storage(self) -> str:
        """Who moves the data: ``io_uring``, ``system calls``, or the latter and why io_uring is refused."""
        return self._native.storage

    @property
    def storage_counters(self) -> StorageCounters:
        """What the storage was asked for."""
        return StorageCounters(*self._native.counters)

    def activate(self, session: Session) -> None:
        """Watches for requests that have ended."""
        super().activate(session)
        self._native.set_write_through(self._write_through)
        for queue, fds in zip(session.queues, self._native.activate(session.queues), strict=True):
            for fd in fds:
                session.watch(fd, partial(self._ended, session, queue))

    def config_written(self, offset: int, data: bytes) -> None:
        super().config_written(offset, data)
        self._native.set_write_through(self._write_through)

    def reset(self) -> None:
        self._native.reset()
        super().reset()

    def resize(self, size: int) -> None:
        super().resize(size)
        self._native.set_size(self._size)

    def close(self) -> None:
        self._native.close()
        super().close()

    def process(self, queue: VirtQueue) -> None:
        """Answers what has ended, and begins what is in the ring."""
        for what, number in self._native.process(queue):
            log.warning("%s failed, %s: %s", self.image.path, what, os.strerror(number))

    def _ended(self, session: Session, queue: VirtQueue) -> None:
        try:
            self.process(queue)
        except RingError as error:
            # Found while looking for more; the driver is told as after a kick.
            log.error("the driver broke a rule, queue %d stops: %s", queue.index, error)  # noqa: TRY400
            session._endpoint.fail_queue(queue.index)


class NullBlockDevice(Device):
    """A disk that reads as zeroes and forgets what is written to it: for measuring everything but storage.

    Its requests are answered in Rust, and checked as on any disk.

    Args:
        sectors: its size in sectors of 512 bytes, at least 1.
        queues: how many queues there are, 1 to 256.
        queue_size: the largest size of each ring, a power of two.
        thread_per_queue: serve each queue on its own thread.

    Raises:
        ValueError: a number is out of range.
    """

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK

    def __init__(
        self, sectors: int, *, queues: int = 1, queue_size: int = 256, thread_per_queue: bool = False
    ) -> None:
        if not 1 <= queues <= 256:
            raise ValueError(f"queues is {queues}; a device has 1 to 256")
        if not 1 <= sectors <= 2**55 - 1:
            raise ValueError(f"sectors is {sectors}; a disk has 1 to 2**55 - 1")
        self.queue_sizes = (queue_size,) * queues
        self.thread_per_queue = thread_per_queue
        self.features = (
            BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | BlockFeature.TOPOLOGY | BlockFeature.FLUSH
        )
        blocks = PHYSICAL_BLOCK // SECTOR_SIZE
        self.config: BlockConfig = BlockConfig(
            capacity=sectors,
            seg_max=max(queue_size - 2, 1),
            blk_size=SECTOR_SIZE,
            physical_block_exp=blocks.bit_length() - 1,
            min_io_size=blocks,
            writeback=1,
            num_queues=queues,
        )
        self._native = NullBlock(sectors)

    def process(self, queue: VirtQueue) -> None:
        """Answers what is in the ring."""
        self._native.process(queue)
