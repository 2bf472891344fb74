"""Virtio device backends in Python, over vhost-user and on Xen; typed drivers for other people's daemons.

General layout: a name that starts with an underscore is private. What a backend author needs is here; the
rest by subject:

- ``xenvirt.virtio``: constants and structures of the device types.
- ``xenvirt.devices``: devices that are ready to be served; ``xenvirt.drivers``: the other end of each.
- ``xenvirt.errors``: everything that is raised.
- ``xenvirt.memory``: guest memory, for those who make their own.
"""

from xenvirt._native import Batch, Chain, GuestMemory, Mask, RelayMessage, VirtQueue
from xenvirt.connect import AsyncLink, connect, connect_async
from xenvirt.daemon import Daemon
from xenvirt.device import AsyncDevice, Device, Session, Watch
from xenvirt.errors import XenvirtError
from xenvirt.link import Link
from xenvirt.remote import RelayCounters, Relayed, RemoteDevice
from xenvirt.server import Counters, Served, Server, serve, serve_all, serve_async
from xenvirt.vhost_user.frontend import Frontend
from xenvirt.vhost_user.socket import VhostUserSocket
from xenvirt.virtio.features import Feature
from xenvirt.virtio.ids import DeviceId

__all__ = [
    "AsyncDevice",
    "AsyncLink",
    "Batch",
    "Chain",
    "Counters",
    "Daemon",
    "Device",
    "DeviceId",
    "Feature",
    "Frontend",
    "GuestMemory",
    "Link",
    "Mask",
    "RelayCounters",
    "RelayMessage",
    "Relayed",
    "RemoteDevice",
    "Served",
    "Server",
    "Session",
    "VhostUserSocket",
    "VirtQueue",
    "Watch",
    "XenvirtError",
    "connect",
    "connect_async",
    "serve",
    "serve_all",
    "serve_async",
]
