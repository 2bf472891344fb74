"""Devices that are ready to be served, written with the public API as anybody would; but for :mod:`.native`,
whose requests are answered in Rust.
"""

from .block import BlockDevice
from .console import ConsoleDevice
from .console_port import Port, Pty, Stdio
from .entropy import EntropyDevice
from .image import RawImage
from .native import NativeBlockDevice, NullBlockDevice, StorageCounters
from .net import NetDevice
from .net_backend import CableEnd, NetBackend, Sink, cable
from .tap import Tap

__all__ = [
    "BlockDevice",
    "CableEnd",
    "ConsoleDevice",
    "EntropyDevice",
    "NativeBlockDevice",
    "NetBackend",
    "NetDevice",
    "NullBlockDevice",
    "Port",
    "Pty",
    "RawImage",
    "Sink",
    "Stdio",
    "StorageCounters",
    "Tap",
    "cable",
]
