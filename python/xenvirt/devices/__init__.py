"""Devices that are ready to be served, written with the public API as anybody would."""

from .block import BlockDevice
from .console import ConsoleDevice
from .console_port import Port, Pty, Stdio
from .entropy import EntropyDevice
from .image import RawImage
from .net import NetDevice
from .net_backend import CableEnd, NetBackend, Sink, cable
from .tap import Tap

__all__ = [
    "BlockDevice",
    "CableEnd",
    "ConsoleDevice",
    "EntropyDevice",
    "NetBackend",
    "NetDevice",
    "Port",
    "Pty",
    "RawImage",
    "Sink",
    "Stdio",
    "Tap",
    "cable",
]
