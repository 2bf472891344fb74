"""What a server asks of a transport."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from xenvirt._native import Endpoint
from xenvirt.device import Device
from xenvirt.remote import RemoteDevice


class Transport(Protocol):
    """How a driver reaches a device: :class:`~xenvirt.VhostUserSocket`, :class:`~xenvirt.xen.XenGuest`."""

    @property
    def connect(self) -> bool:
        """Whether we come to the driver's side, again and again, as often as it goes away."""

    @property
    def listens(self) -> bool:
        """Whether the driver's side may come again when it has gone away."""

    def attach(self, endpoint: Endpoint, device_id: int, /) -> bool:
        """Lets drivers reach the endpoint of a device from now on. False if there is none to connect to yet.

        Raises:
            OSError: it is not possible.
        """

    def remove(self) -> None:
        """Takes back what is visible from outside. The endpoint is closed already."""


@runtime_checkable
class DaemonTransport(Transport, Protocol):
    """A transport on which a daemon can be served too, though its drivers do not speak vhost-user."""

    def remote_backend(self, device: RemoteDevice, /) -> Device:
        """The daemon as a device of this process, which tells it of the driver.

        Raises:
            NegotiationError: the daemon cannot be used here.
            DisconnectedError: it is not there.
        """
