"""Where a device meets its guest: its registers and interrupt, over xenvirt.xen.XenGuest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from xenvirt import Device, RemoteDevice, Server, Session, VirtQueue
from xenvirt.errors import BackendError, DisconnectedError, NegotiationError
from xenvirt.remote_backend import RemoteBackend
from xenvirt.xen import XenGuest
from xenvirt.xen.attach.backend import Served
from xenvirt.xen.virtio_node import VirtioNode


class EmptyDevice(Device):
    """No device: DeviceID 0, which a driver passes over (virtio 1.3, section 4.2.2, DeviceID).

    A slot of the device tree that nobody answers for would abort the guest's access, and Linux dies of that.
    """

    device_id = 0
    queue_sizes = (1,)

    def process(self, queue: VirtQueue) -> None:
        """There is no driver that would ask anything."""


class GuestSlot:
    """A device that is served to a guest, until it is closed.

    Raises:
        BackendError: the device is a daemon, and nobody answers at its socket, or it cannot map the memory of
            a guest.
    """

    def __init__(self, node: VirtioNode, device: Served, ready: Callable[[], None]) -> None:
        transport = XenGuest(
            node.domid, base=node.base, irq=node.irq, memory="grants" if node.grants else "foreign"
        )
        with ExitStack() as failed:
            if isinstance(device, RemoteDevice):
                device = _as_device(device, transport)
                failed.callback(device.close)
            activate = device.activate

            def activated(session: Session) -> None:
                activate(session)
                ready()

            # Of this one object: the device's class need not know who serves it.
            device.activate = activated  # type: ignore[method-assign]
            self._server = failed.enter_context(Server())
            self._server.add(device, transport)
            failed.pop_all()

    def close(self) -> None:
        """Ends the device's session, and gives all of the guest back that this device had."""
        self._server.close()


def _as_device(daemon: RemoteDevice, transport: XenGuest) -> RemoteBackend:
    try:
        return transport.remote_backend(daemon)
    except (NegotiationError, DisconnectedError) as error:
        raise BackendError(f"{daemon!r}: {error}") from error


def open_slot(node: VirtioNode, device: Served | None, ready: Callable[[], None]) -> GuestSlot:
    """Takes a guest's slot; see :data:`xenvirt.xen.attach.attachment.OpenSlot`.

    Raises:
        BackendError: this device cannot be served to a Xen guest.
        XenCallError: Xen refuses: there is no such domain, or it is a PV one.
        OSError: Xen's devices cannot be opened.
    """
    return GuestSlot(node, device if device is not None else EmptyDevice(), ready)
