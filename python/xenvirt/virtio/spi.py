"""The SPI controller: its constants and structures (virtio 1.4, section "SPI Controller Device"; Linux:
virtio_spi.h).

One queue. A request is a :class:`TransferHeader`, the bytes to send, room for the bytes to receive, and one
byte of :class:`Result`; for full duplex both lengths are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from .structure import U8, U32, Structure


class Mode(IntFlag):
    """The `mode` of a transfer."""

    CPHA = 1 << 0
    """Data is sampled at the trailing edge of the clock."""
    CPOL = 1 << 1
    """The clock is high when idle."""
    CS_HIGH = 1 << 2
    LSB_FIRST = 1 << 3
    LOOP = 1 << 4


class ModeSupport(IntFlag):
    """`mode_func_supported`: which modes the controller knows."""

    CPHA_0 = 1 << 0
    CPHA_1 = 1 << 1
    CPOL_0 = 1 << 2
    CPOL_1 = 1 << 3
    CS_HIGH = 1 << 4
    LSB_FIRST = 1 << 5
    LOOPBACK = 1 << 6


class Lanes(IntFlag):
    """`tx_nbits_supported` and `rx_nbits_supported`: lanes beside the single one, which is always there."""

    DUAL = 1 << 0
    QUAD = 1 << 1
    OCTAL = 1 << 2


class Result(IntEnum):
    """The last byte of a transfer, written by the device."""

    OK = 0
    PARAM_ERR = 1
    TRANS_ERR = 2


@dataclass(frozen=True)
class TransferHeader(Structure):
    """What a transfer begins with: 32 bytes."""

    chip_select_id: U8 = 0
    bits_per_word: U8 = 8
    cs_change: U8 = 0
    """1: deselect the chip after this transfer."""
    tx_nbits: U8 = 0
    """Lanes for sending: 0 or 1, 2, 4, 8."""
    rx_nbits: U8 = 0
    """Lanes for receiving: 0 or 1, 2, 4, 8."""
    reserved: Annotated[bytes, "3s"] = bytes(3)
    mode: U32 = 0
    """A :class:`Mode`."""
    freq: U32 = 0
    """In Hz."""
    word_delay_ns: U32 = 0
    cs_setup_ns: U32 = 0
    cs_delay_hold_ns: U32 = 0
    cs_change_delay_inactive_ns: U32 = 0


@dataclass(frozen=True)
class SpiConfig(Structure):
    """The configuration space of an SPI controller: 32 bytes."""

    cs_max_number: U8 = 0
    """How many chips can be selected."""
    cs_change_supported: U8 = 0
    tx_nbits_supported: U8 = 0
    """:class:`Lanes`."""
    rx_nbits_supported: U8 = 0
    """:class:`Lanes`."""
    bits_per_word_mask: U32 = 0
    """Bit n - 1: words of n bits. 0: any."""
    mode_func_supported: U32 = 0
    """:class:`ModeSupport`."""
    max_freq_hz: U32 = 0
    """0: no limit."""
    max_word_delay_ns: U32 = 0
    """0: not supported; so are the next three."""
    max_cs_setup_ns: U32 = 0
    max_cs_hold_ns: U32 = 0
    max_cs_inactive_ns: U32 = 0
