"""Devices that are ready to be served, written with the public API as anybody would."""

from .entropy import EntropyDevice
from .image import RawImage

__all__ = ["EntropyDevice", "RawImage"]
