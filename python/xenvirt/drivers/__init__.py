"""Typed drivers: the other end of a device. They speak through what :func:`xenvirt.connect` gives."""

from .block import AsyncBlockDriver, BlockDriver
from .driver import AsyncDriver, Driver, Plan
from .entropy import AsyncEntropyDriver, EntropyDriver
from .request import Answer, AsyncLink, Link, Pending, Request

__all__ = [
    "Answer",
    "AsyncBlockDriver",
    "AsyncDriver",
    "AsyncEntropyDriver",
    "AsyncLink",
    "BlockDriver",
    "Driver",
    "EntropyDriver",
    "Link",
    "Pending",
    "Plan",
    "Request",
]
