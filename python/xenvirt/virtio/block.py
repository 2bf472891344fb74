"""The block device: its constants and structures (virtio 1.3, section 5.2; Linux: virtio_blk.h).

Sectors are 512 bytes everywhere, whatever the device's block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, Final

from .structure import U8, U16, U32, U64, Structure

SECTOR_SIZE: Final = 512
"""Bytes in a sector: the unit of `capacity`, `sector` and every other count of sectors."""

ID_SIZE: Final = 20
"""Bytes in the answer to GET_ID: a string, filled with zero bytes, not terminated when it has all 20."""


class BlockFeature(IntFlag):
    """What a block device can do (virtio 1.3, section 5.2.3)."""

    BARRIER = 1 << 0
    """Legacy: requests can be barriers."""
    SIZE_MAX = 1 << 1
    """A segment has at most `size_max` bytes."""
    SEG_MAX = 1 << 2
    """A request has at most `seg_max` data segments."""
    GEOMETRY = 1 << 4
    """Cylinders, heads and sectors are given."""
    RO = 1 << 5
    """The device is read-only: writes of any kind are refused with IOERR."""
    BLK_SIZE = 1 << 6
    """The block size is given."""
    SCSI = 1 << 7
    """Legacy: SCSI commands can be passed through."""
    FLUSH = 1 << 9
    """There is a cache, and a FLUSH request."""
    TOPOLOGY = 1 << 10
    """Alignments and good sizes for I/O are given."""
    CONFIG_WCE = 1 << 11
    """The driver may switch between writeback and writethrough by writing `writeback`."""
    MQ = 1 << 12
    """There are `num_queues` queues. The server adds it by itself when a device has several."""
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


class RequestType(IntEnum):
    """What a request asks for (virtio 1.3, section 5.2.6)."""

    IN = 0
    """Read."""
    OUT = 1
    """Write."""
    SCSI_CMD = 2
    """Legacy."""
    FLUSH = 4
    """Make every write that was completed before durable."""
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


class Status(IntEnum):
    """The last byte of each request, written by the device (virtio 1.3, section 5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


class RangeFlag(IntFlag):
    """The flags of a :class:`DiscardWriteZeroes` range."""

    UNMAP = 1
    """Write zeroes: the device may deallocate the range. Discard: must not be set."""


class ZonedModel(IntEnum):
    """What kind of zones a device has (`zoned_model`)."""

    NONE = 0
    HOST_MANAGED = 1
    HOST_AWARE = 2


@dataclass(frozen=True)
class RequestHeader(Structure):
    """What the driver writes in front of each request: 16 bytes, then the data, then one byte of
    :class:`Status`.
    """

    type: U32 = 0
    """A :class:`RequestType`."""
    ioprio: U32 = 0
    """Reserved in virtio 1.x, a priority before: 0."""
    sector: U64 = 0
    """The first sector to read or write; 0 for the other types."""


@dataclass(frozen=True)
class DiscardWriteZeroes(Structure):
    """One range of a DISCARD, WRITE_ZEROES or SECURE_ERASE request: 16 bytes. A request carries one or
    several.
    """

    sector: U64 = 0
    """The first sector."""
    num_sectors: U32 = 0
    """How many sectors."""
    flags: U32 = 0
    """A :class:`RangeFlag`."""


@dataclass(frozen=True)
class BlockConfig(Structure):
    """The configuration space of a block device (virtio 1.3, section 5.2.4): 96 bytes.

    Each field counts only where its feature was negotiated; only `capacity` always does.
    """

    capacity: U64 = 0
    """Sectors of 512 bytes."""
    size_max: U32 = 0
    """SIZE_MAX: the largest segment in bytes."""
    seg_max: U32 = 0
    """SEG_MAX: the most data segments in a request, header and status not counted."""
    cylinders: U16 = 0
    """GEOMETRY."""
    heads: U8 = 0
    """GEOMETRY."""
    sectors: U8 = 0
    """GEOMETRY: sectors per track."""
    blk_size: U32 = 0
    """BLK_SIZE: the block size in bytes."""
    physical_block_exp: U8 = 0
    """TOPOLOGY: logical blocks per physical block, as a power of two."""
    alignment_offset: U8 = 0
    """TOPOLOGY: the first aligned logical block."""
    min_io_size: U16 = 0
    """TOPOLOGY: the smallest good I/O size in logical blocks."""
    opt_io_size: U32 = 0
    """TOPOLOGY: the best I/O size in logical blocks."""
    writeback: U8 = 0
    """CONFIG_WCE: 0 is writethrough, 1 writeback; the driver may write it."""
    unused0: U8 = 0
    num_queues: U16 = 0
    """MQ: how many request queues there are."""
    max_discard_sectors: U32 = 0
    """DISCARD: the most sectors in one range."""
    max_discard_seg: U32 = 0
    """DISCARD: the most ranges in one request."""
    discard_sector_alignment: U32 = 0
    """DISCARD: the granularity in sectors."""
    max_write_zeroes_sectors: U32 = 0
    """WRITE_ZEROES: the most sectors in one range."""
    max_write_zeroes_seg: U32 = 0
    """WRITE_ZEROES: the most ranges in one request."""
    write_zeroes_may_unmap: U8 = 0
    """WRITE_ZEROES: 1 if a range with UNMAP may be deallocated."""
    unused1: Annotated[bytes, "3s"] = bytes(3)
    max_secure_erase_sectors: U32 = 0
    """SECURE_ERASE: the most sectors in one range."""
    max_secure_erase_seg: U32 = 0
    """SECURE_ERASE: the most ranges in one request."""
    secure_erase_sector_alignment: U32 = 0
    """SECURE_ERASE: the granularity in sectors."""
    zone_sectors: U32 = 0
    """ZONED: sectors in a zone."""
    max_open_zones: U32 = 0
    """ZONED."""
    max_active_zones: U32 = 0
    """ZONED."""
    max_append_sectors: U32 = 0
    """ZONED: the most sectors in one ZONE_APPEND."""
    write_granularity: U32 = 0
    """ZONED: in bytes."""
    zoned_model: U8 = 0
    """ZONED: a :class:`ZonedModel`."""
    unused2: Annotated[bytes, "3s"] = bytes(3)
