"""Where a device meets its guest: its registers and interrupt, over xenvirt.xen.XenGuest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from xenvirt import Device, RemoteDevice, Server, Session, VirtQueue
from xenvirt._native import GuestBus
from xenvirt.devices import BlockDevice
from xenvirt.errors import BackendError, DisconnectedError, NegotiationError
from xenvirt.remote_backend import RemoteBackend
from xenvirt.xen import XenGuest
from xenvirt.xen.attach.backend import Served
from xenvirt.xen.attach.records import GuestRecords
from xenvirt.xen.guest import Memory
from xenvirt.xen.virtio_node import VirtioNode


class EmptyDevice(Device):
    """No device: DeviceID 0, which a driver passes over (virtio 1.3, section 4.2.2, DeviceID).

    A slot of the device tree that nobody answers for would abort the guest's access, and Linux dies of that.
    """

    device_id = 0
    queue_sizes = (1,)

    def process(self, queue: VirtQueue) -> None:
        """There is no driver that would ask anything."""


class GuestSlots:
    """The slots that this process takes, with what another goes on by when this one has ended.

    Args:
        root: where that is; see :mod:`xenvirt.xen.attach.records`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._records: dict[tuple[int, str], GuestRecords] = {}
        self._open: list[GuestSlot] = []
        self._lock = threading.Lock()
        """Attachments open slots on threads of their own."""

    def open(self, node: VirtioNode, device: Served | None, ready: Callable[[], None]) -> GuestSlot:
        """Takes a guest's slot; see :data:`xenvirt.xen.attach.attachment.OpenSlot`.

        Raises:
            BackendError: this device cannot be served to a Xen guest.
            XenCallError: Xen refuses: there is no such domain, or it is a PV one.
            OSError: Xen's devices cannot be opened.
        """
        memory: Memory = "grants" if node.grants else "foreign"
        transport = XenGuest(node.domid, base=node.base, irq=node.irq, memory=memory)
        return self._take(transport, node.uuid, device, ready)

    def take_over(self, domid: int) -> None:
        """All devices of a guest have their slots: what processes that are gone were asked is answered."""
        with self._lock:
            of_guest = {uuid: records for (guest, uuid), records in self._records.items() if guest == domid}
            left = [(uuid, base) for uuid, records in of_guest.items() for base in records.left()]
        for uuid, base in left:
            # A device that is none any more; the guest has to find somebody there all the same.
            self._take(XenGuest(domid, base=base), uuid, None, lambda: None)
        with self._lock:
            buses = [slot.transport.bus for slot in self._open if slot.transport.domid == domid]
            bus = next((bus for bus in buses if bus is not None), None)
            if bus is not None:
                for records in of_guest.values():
                    records.take_over(bus)

    def close(self) -> None:
        """Leaves the slots that are still open."""
        for slot in tuple(self._open):
            slot.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(
        self, transport: XenGuest, uuid: str | None, device: Served | None, ready: Callable[[], None]
    ) -> GuestSlot:
        domid, base = transport.domid, transport.base
        assert base is not None

        def record(bus: GuestBus) -> int:
            assert uuid is not None
            with self._lock:
                new = GuestRecords(self._root, domid, uuid)
                file = self._records.setdefault((domid, uuid), new).take(base, bus.server)
            if device is None:
                # What a device has left there is kept: the next process may have it again.
                os.close(file)
                return os.memfd_create("no device", os.MFD_CLOEXEC)
            return file

        if uuid is not None:
            # Requests of a disk end as its storage answers.
            transport.outlive(record, in_turn=isinstance(device, BlockDevice))

        def ended(*, forget: bool) -> None:
            with self._lock:
                self._open.remove(slot)
                if forget and uuid is not None:
                    self._records[domid, uuid].forget(base)

        slot = GuestSlot(transport, device if device is not None else EmptyDevice(), ready, ended)
        with self._lock:
            self._open.append(slot)
        return slot


class Ended(Protocol):
    """Called when a slot is given up; `forget` if nobody goes on there."""

    def __call__(self, *, forget: bool) -> None: ...


class GuestSlot:
    """A device that is served to a guest, until it is closed.

    Attributes:
        transport: where.

    Raises:
        BackendError: the device is a daemon, and nobody answers at its socket, or it cannot map the memory of
            a guest.
    """

    def __init__(self, transport: XenGuest, device: Served, ready: Callable[[], None], ended: Ended) -> None:
        self.transport = transport
        self._ended = ended
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
        self._ended(forget=True)

    def leave(self) -> None:
        """Ends the device's session without its driver's noticing: another process goes on with it. So it is
        with all other slots of the guest that this process has."""
        bus = self.transport.bus
        if bus is not None:
            bus.leave()
        self._server.close()
        self._ended(forget=bus is None)  # there is no guest any more


def _as_device(daemon: RemoteDevice, transport: XenGuest) -> RemoteBackend:
    try:
        return transport.remote_backend(daemon)
    except (NegotiationError, DisconnectedError) as error:
        raise BackendError(f"{daemon!r}: {error}") from error
