"""Devices that are ready to be served, written with the public API as anybody would."""

from .block import BlockDevice
from .console import ConsoleDevice
from .console_port import Port, Pty, Stdio
from .entropy import EntropyDevice
from .image import RawImage

__all__ = ["BlockDevice", "ConsoleDevice", "EntropyDevice", "Port", "Pty", "RawImage", "Stdio"]
