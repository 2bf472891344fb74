"""Devices that are ready to be served, written with the public API as anybody would."""

from .block import BlockDevice
from .entropy import EntropyDevice
from .image import RawImage

__all__ = ["BlockDevice", "EntropyDevice", "RawImage"]
