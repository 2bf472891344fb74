"""Which fields of a configuration space count with which features, and so how long the space is.

Configuration spaces grew over the years, each field with a feature of its own, and a device has the space
that its features speak of. Whoever asks a backend for more is refused, disconnected, or answered with what
happens to lie behind the structure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from .block import BlockFeature
from .console import ConsoleFeature
from .ids import DeviceId
from .names import config_class
from .net import NetFeature


def _each(*entries: tuple[int, Iterable[str]]) -> Mapping[str, int]:
    return MappingProxyType({field: int(features) for features, fields in entries for field in fields})


FIELD_FEATURES: Final[Mapping[int, Mapping[str, int]]] = MappingProxyType(
    {
        DeviceId.NET: _each(
            (NetFeature.MAC, ["mac"]),
            (NetFeature.STATUS, ["status"]),
            (NetFeature.MQ | NetFeature.RSS, ["max_virtqueue_pairs"]),
            (NetFeature.MTU, ["mtu"]),
            (NetFeature.SPEED_DUPLEX, ["speed", "duplex"]),
            (NetFeature.RSS | NetFeature.HASH_REPORT, ["rss_max_key_size", "supported_hash_types"]),
            (NetFeature.RSS, ["rss_max_indirection_table_length"]),
        ),
        DeviceId.BLOCK: _each(
            (BlockFeature.SIZE_MAX, ["size_max"]),
            (BlockFeature.SEG_MAX, ["seg_max"]),
            (BlockFeature.GEOMETRY, ["cylinders", "heads", "sectors"]),
            (BlockFeature.BLK_SIZE, ["blk_size"]),
            (
                BlockFeature.TOPOLOGY,
                ["physical_block_exp", "alignment_offset", "min_io_size", "opt_io_size"],
            ),
            (BlockFeature.CONFIG_WCE, ["writeback"]),
            (BlockFeature.MQ, ["unused0", "num_queues"]),
            (BlockFeature.DISCARD, ["max_discard_sectors", "max_discard_seg", "discard_sector_alignment"]),
            (
                BlockFeature.WRITE_ZEROES,
                ["max_write_zeroes_sectors", "max_write_zeroes_seg", "write_zeroes_may_unmap", "unused1"],
            ),
            (
                BlockFeature.SECURE_ERASE,
                [
                    "max_secure_erase_sectors",
                    "max_secure_erase_seg",
                    "secure_erase_sector_alignment",
                ],
            ),
            (
                BlockFeature.ZONED,
                [
                    "zone_sectors",
                    "max_open_zones",
                    "max_active_zones",
                    "max_append_sectors",
                    "write_granularity",
                    "zoned_model",
                    "unused2",
                ],
            ),
        ),
        DeviceId.CONSOLE: _each(
            (ConsoleFeature.SIZE, ["cols", "rows"]),
            (ConsoleFeature.MULTIPORT, ["max_nr_ports"]),
            (ConsoleFeature.EMERG_WRITE, ["emerg_wr"]),
        ),
    }
)
"""For each field that needs one: the features of which one makes it count. A field that is not here always
does.
"""


OTHER_LENGTHS: Final[Mapping[int, int]] = MappingProxyType(
    {
        DeviceId.FS: 40,  # tag[36], le32 num_request_queues
        DeviceId.GPIO: 8,  # le16 ngpio, 2 bytes of padding, le32 gpio_names_size
    }
)
"""The lengths of configuration spaces that we have no structure of (virtio 1.3, 5.11.4 and 5.18.4)."""


def counting_fields(device_id: int, features: int) -> tuple[str, ...]:
    """The fields of a configuration space that count with these features, padding left out.

    >>> counting_fields(DeviceId.BLOCK, BlockFeature.BLK_SIZE)
    ('capacity', 'blk_size')
    """
    names = (name for name, _ in _counting(device_id, features))
    return tuple(name for name in names if not name.startswith(("unused", "reserved", "padding")))


def config_length(device_id: int, features: int) -> int:
    """How many bytes of configuration space a device with these features has at least: up to the last field
    that counts. 0 for a type that has no space, or that we do not know.

    >>> config_length(DeviceId.BLOCK, 0), config_length(DeviceId.BLOCK, BlockFeature.WRITE_ZEROES)
    (8, 60)
    """
    return max((end for _, end in _counting(device_id, features)), default=OTHER_LENGTHS.get(device_id, 0))


def _counting(device_id: int, features: int) -> Iterator[tuple[str, int]]:
    """Names and ends of the fields that count."""
    structure = config_class(device_id)
    if structure is None:
        return
    needed = FIELD_FEATURES.get(device_id, {})
    for name, letters, offset in structure.fields():
        if name not in needed or features & needed[name]:
            yield name, offset + struct.calcsize("<" + letters)
