"""Virtio's constants and structures, one module for each device type (virtio 1.3, section 5).

>>> from xenvirt.virtio.block import BlockConfig
>>> BlockConfig.from_bytes(BlockConfig(capacity=8).to_bytes()).capacity
8
"""

from .config_fields import config_length, counting_fields
from .features import DeviceStatus, Feature
from .ids import DeviceId
from .names import config_class, feature_names
from .structure import Structure

__all__ = [
    "DeviceId",
    "DeviceStatus",
    "Feature",
    "Structure",
    "config_class",
    "config_length",
    "counting_fields",
    "feature_names",
]
