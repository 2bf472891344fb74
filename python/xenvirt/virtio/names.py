"""From a device type to its features and configuration space, and from feature bits to their names."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from types import MappingProxyType
from typing import Final

from .block import BlockConfig, BlockFeature
from .can import CanConfig, CanFeature
from .console import ConsoleConfig, ConsoleFeature
from .features import Feature
from .i2c import I2cFeature
from .ids import DeviceId
from .input import InputConfig
from .net import NetConfig, NetFeature
from .scsi import ScsiConfig, ScsiFeature
from .sound import SoundConfig
from .spi import SpiConfig
from .structure import Structure
from .vsock import VsockConfig, VsockFeature

DEVICE_FEATURES: Final[Mapping[DeviceId, type[IntFlag]]] = MappingProxyType(
    {
        DeviceId.NET: NetFeature,
        DeviceId.BLOCK: BlockFeature,
        DeviceId.CONSOLE: ConsoleFeature,
        DeviceId.SCSI: ScsiFeature,
        DeviceId.VSOCK: VsockFeature,
        DeviceId.I2C: I2cFeature,
        DeviceId.CAN: CanFeature,
    }
)
"""The feature bits of the device types that have some, and that we know."""

DEVICE_CONFIGS: Final[Mapping[DeviceId, type[Structure]]] = MappingProxyType(
    {
        DeviceId.NET: NetConfig,
        DeviceId.BLOCK: BlockConfig,
        DeviceId.CONSOLE: ConsoleConfig,
        DeviceId.SCSI: ScsiConfig,
        DeviceId.INPUT: InputConfig,
        DeviceId.VSOCK: VsockConfig,
        DeviceId.SOUND: SoundConfig,
        DeviceId.CAN: CanConfig,
        DeviceId.SPI: SpiConfig,
    }
)
"""The configuration spaces of the device types that have one, and that we know."""


def config_class(device_id: int) -> type[Structure] | None:
    """The structure of a device type's configuration space; None if it has none or we do not know it."""
    return DEVICE_CONFIGS.get(device_id)  # type: ignore[call-overload, no-any-return]


def feature_names(features: int, device_id: int | None = None) -> list[str]:
    """The names of the bits that are set, lowest first.

    The bits below 24 and above 41 mean something else for each device type: without `device_id`, and for
    types that we do not know, they are given as ``bit 5``.

    >>> feature_names(1 << 32 | 1 << 5, DeviceId.BLOCK)
    ['RO', 'VERSION_1']
    """
    own = DEVICE_FEATURES.get(device_id)  # type: ignore[call-overload]
    names = {flag.value: flag.name for flag in Feature}
    if own is not None:
        names |= {flag.value: flag.name for flag in own}
    bits = (1 << number for number in range(features.bit_length()) if features >> number & 1)
    return [names.get(bit) or f"bit {bit.bit_length() - 1}" for bit in bits]
