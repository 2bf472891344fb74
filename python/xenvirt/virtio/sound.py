"""The sound device: its constants and structures (virtio 1.3, section 5.14; Linux: virtio_snd.h).

Queues, seen from the driver: 0 control, 1 events, 2 takes samples to play, 3 brings samples recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from .structure import U8, U32, U64, Structure


class Queue(IntEnum):
    """The device's queues."""

    CONTROL = 0
    EVENT = 1
    TX = 2
    RX = 3


class Direction(IntEnum):
    """Which way a stream flows."""

    OUTPUT = 0
    INPUT = 1


class Request(IntEnum):
    """What a control message asks for."""

    JACK_INFO = 1
    JACK_REMAP = 2
    PCM_INFO = 0x0100
    PCM_SET_PARAMS = 0x0101
    PCM_PREPARE = 0x0102
    PCM_RELEASE = 0x0103
    PCM_START = 0x0104
    PCM_STOP = 0x0105
    CHMAP_INFO = 0x0200


class EventType(IntEnum):
    """What the event queue tells."""

    JACK_CONNECTED = 0x1000
    JACK_DISCONNECTED = 0x1001
    PCM_PERIOD_ELAPSED = 0x1100
    PCM_XRUN = 0x1101


class Status(IntEnum):
    """The code of an answer."""

    OK = 0x8000
    BAD_MSG = 0x8001
    NOT_SUPP = 0x8002
    IO_ERR = 0x8003


class PcmFeature(IntFlag):
    """What a stream can do."""

    SHMEM_HOST = 1 << 0
    SHMEM_GUEST = 1 << 1
    MSG_POLLING = 1 << 2
    EVT_SHMEM_PERIODS = 1 << 3
    EVT_XRUNS = 1 << 4


class Format(IntEnum):
    """Sample formats; `formats` has bit n set for format n. Linux's header has their widths."""

    IMA_ADPCM = 0
    MU_LAW = 1
    A_LAW = 2
    S8 = 3
    U8 = 4
    S16 = 5
    U16 = 6
    S18_3 = 7
    U18_3 = 8
    S20_3 = 9
    U20_3 = 10
    S24_3 = 11
    U24_3 = 12
    S20 = 13
    U20 = 14
    S24 = 15
    U24 = 16
    S32 = 17
    U32 = 18
    FLOAT = 19
    FLOAT64 = 20
    DSD_U8 = 21
    DSD_U16 = 22
    DSD_U32 = 23
    IEC958_SUBFRAME = 24


class Rate(IntEnum):
    """Sample rates in Hz by name; `rates` has bit n set for rate n."""

    HZ_5512 = 0
    HZ_8000 = 1
    HZ_11025 = 2
    HZ_16000 = 3
    HZ_22050 = 4
    HZ_32000 = 5
    HZ_44100 = 6
    HZ_48000 = 7
    HZ_64000 = 8
    HZ_88200 = 9
    HZ_96000 = 10
    HZ_176400 = 11
    HZ_192000 = 12
    HZ_384000 = 13


@dataclass(frozen=True)
class SoundConfig(Structure):
    """The configuration space of a sound device (virtio 1.3, section 5.14.4): 12 bytes."""

    jacks: U32 = 0
    streams: U32 = 0
    chmaps: U32 = 0


@dataclass(frozen=True)
class Header(Structure):
    """What each control message and each answer begins with: 4 bytes."""

    code: U32 = 0
    """A :class:`Request` or a :class:`Status`."""


@dataclass(frozen=True)
class Event(Structure):
    """A message of the event queue: 8 bytes."""

    code: U32 = 0
    """An :class:`EventType`."""
    data: U32 = 0


@dataclass(frozen=True)
class QueryInfo(Structure):
    """Asks for the descriptions of jacks, streams or channel maps: 16 bytes."""

    code: U32 = 0
    start_id: U32 = 0
    count: U32 = 0
    item_size: U32 = 0
    """The length of one description in bytes. The specification says size."""


@dataclass(frozen=True)
class JackInfo(Structure):
    """A jack: 24 bytes."""

    hda_fn_nid: U32 = 0
    features: U32 = 0
    hda_reg_defconf: U32 = 0
    hda_reg_caps: U32 = 0
    connected: U8 = 0
    padding: Annotated[bytes, "7s"] = bytes(7)


@dataclass(frozen=True)
class PcmHeader(Structure):
    """PREPARE, RELEASE, START and STOP: 8 bytes."""

    code: U32 = 0
    stream_id: U32 = 0


@dataclass(frozen=True)
class PcmInfo(Structure):
    """A stream: 32 bytes."""

    hda_fn_nid: U32 = 0
    features: U32 = 0
    """A :class:`PcmFeature`."""
    formats: U64 = 0
    """Bit n: :class:`Format` n."""
    rates: U64 = 0
    """Bit n: :class:`Rate` n."""
    direction: U8 = 0
    """A :class:`Direction`."""
    channels_min: U8 = 0
    channels_max: U8 = 0
    padding: Annotated[bytes, "5s"] = bytes(5)


@dataclass(frozen=True)
class PcmSetParams(Structure):
    """SET_PARAMS: 24 bytes."""

    code: U32 = 0
    stream_id: U32 = 0
    buffer_bytes: U32 = 0
    period_bytes: U32 = 0
    features: U32 = 0
    channels: U8 = 0
    format: U8 = 0
    """A :class:`Format`."""
    rate: U8 = 0
    """A :class:`Rate`."""
    padding: U8 = 0


@dataclass(frozen=True)
class PcmTransfer(Structure):
    """What samples begin with, in both directions: 4 bytes."""

    stream_id: U32 = 0


@dataclass(frozen=True)
class PcmStatus(Structure):
    """What the device writes at the end of a transfer: 8 bytes."""

    status: U32 = 0
    """A :class:`Status`."""
    latency_bytes: U32 = 0
