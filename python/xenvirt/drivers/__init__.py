"""Typed drivers: the other end of a device. They speak through what :func:`xenvirt.connect` gives."""

from .block import AsyncBlockDriver, BlockDriver
from .console import AsyncConsoleDriver, ConsoleDriver
from .console_protocol import ConsolePort
from .driver import AsyncDriver, Driver, Plan
from .entropy import AsyncEntropyDriver, EntropyDriver
from .i2c import AsyncI2cDriver, I2cDriver
from .net import AsyncNetDriver, NetDriver
from .receiver import AsyncReceiver, Receiver
from .request import Answer, AsyncLink, Link, Pending, Request
from .scsi import AsyncScsiDriver, ScsiDriver
from .spi import AsyncSpiDriver, SpiDriver
from .vsock import VsockDriver
from .vsock_asyncio import AsyncVsockDriver, AsyncVsockServer
from .vsock_stream import VsockListener, VsockStream
from .vsock_transport import VsockTransport

__all__ = [
    "Answer",
    "AsyncBlockDriver",
    "AsyncConsoleDriver",
    "AsyncDriver",
    "AsyncEntropyDriver",
    "AsyncI2cDriver",
    "AsyncLink",
    "AsyncNetDriver",
    "AsyncReceiver",
    "AsyncScsiDriver",
    "AsyncSpiDriver",
    "AsyncVsockDriver",
    "AsyncVsockServer",
    "BlockDriver",
    "ConsoleDriver",
    "ConsolePort",
    "Driver",
    "EntropyDriver",
    "I2cDriver",
    "Link",
    "NetDriver",
    "Pending",
    "Plan",
    "Receiver",
    "Request",
    "ScsiDriver",
    "SpiDriver",
    "VsockDriver",
    "VsockListener",
    "VsockStream",
    "VsockTransport",
]
