"""Typed drivers: the other end of a device. They speak through what :func:`xenvirt.connect` gives."""

from .block import AsyncBlockDriver, BlockDriver
from .can import AsyncCanDriver, CanDriver, CanFrame
from .console import AsyncConsoleDriver, ConsoleDriver
from .console_protocol import ConsolePort
from .driver import AsyncDriver, Driver, Plan
from .entropy import AsyncEntropyDriver, EntropyDriver
from .i2c import AsyncI2cDriver, I2cDriver
from .input import AsyncInputDriver, InputDriver
from .net import AsyncNetDriver, NetDriver
from .receiver import AsyncReceiver, Receiver
from .request import Answer, AsyncLink, Link, Pending, Request
from .scsi import AsyncScsiDriver, ScsiDriver
from .sound import AsyncSoundDriver, SoundDriver
from .spi import AsyncSpiDriver, SpiDriver
from .vsock import VsockDriver
from .vsock_asyncio import AsyncVsockDriver, AsyncVsockServer
from .vsock_stream import VsockListener, VsockStream
from .vsock_transport import VsockTransport

__all__ = [
    "Answer",
    "AsyncBlockDriver",
    "AsyncCanDriver",
    "AsyncConsoleDriver",
    "AsyncDriver",
    "AsyncEntropyDriver",
    "AsyncI2cDriver",
    "AsyncInputDriver",
    "AsyncLink",
    "AsyncNetDriver",
    "AsyncReceiver",
    "AsyncScsiDriver",
    "AsyncSoundDriver",
    "AsyncSpiDriver",
    "AsyncVsockDriver",
    "AsyncVsockServer",
    "BlockDriver",
    "CanDriver",
    "CanFrame",
    "ConsoleDriver",
    "ConsolePort",
    "Driver",
    "EntropyDriver",
    "I2cDriver",
    "InputDriver",
    "Link",
    "NetDriver",
    "Pending",
    "Plan",
    "Receiver",
    "Request",
    "ScsiDriver",
    "SoundDriver",
    "SpiDriver",
    "VsockDriver",
    "VsockListener",
    "VsockStream",
    "VsockTransport",
]
