"""A Xen guest as a transport: where its driver finds the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from xenvirt._native import Endpoint, GuestBus, SimulatedDomain, SimulatedXen
from xenvirt.errors import NegotiationError, VirtioNodeError, XenStoreError
from xenvirt.remote import RemoteDevice
from xenvirt.remote_backend import RemoteBackend
from xenvirt.xen.foreign import ForeignMemory
from xenvirt.xen.guest_end import GuestEnd
from xenvirt.xen.interrupt import guest_interrupt
from xenvirt.xen.ram import guest_ram
from xenvirt.xen.remote import DaemonMemory, need_xen_mmap
from xenvirt.xen.virtio_node import VirtioNode, virtio_nodes
from xenvirt.xen.xenbus import XenbusState, advance
from xenvirt.xen.xenstore import XenStore

log = logging.getLogger("xenvirt")

Memory = Literal["any", "foreign", "grants"]

DOMID_FIRST_RESERVED = 0x7FF0
"""From here on domain ids have a meaning of their own (xen/include/public/xen.h)."""


class XenGuest:
    """A virtio-mmio device of a Xen guest, served from a dom0 or a driver domain.

    ::

        serve(EntropyDevice(), XenGuest(3))  # where the toolstack announced it
        serve(EntropyDevice(), XenGuest(3, base=0x2000000, irq=33))

    Xen traps the driver's accesses to the registers; an IOREQ server, one for all devices of a guest in this
    process, answers them. It ends when the guest is gone, which the xenstore tells. Serve a device before its
    guest touches it: an Arm guest dies of a register that nobody answers.

    Args:
        domid: the guest: an Arm, PVH or HVM one.
        device: which of the devices that the toolstack announced: its number (``devid``). Not needed where
            only one is of this kind.
        base: guest physical address of the registers, where the toolstack announced nothing (x86, or xl's
            ``device_tree=``).
        irq: the interrupt that belongs to ``base``, as Xen counts: on Arm an SPI, from 32; in an HVM guest an
            input of its I/O APIC, 16 to 47 (:func:`acpi_table` tells it to the guest). None where the guest
            polls, as it has to on a PVH guest of x86: no interrupt line reaches one.
        hvm: that you know the guest to be HVM, where the toolstack is not xl, which says so in the xenstore.
        memory: how the guest's memory is reached. "any" goes by what the driver says: by grants where it
            gives any, else by foreign mappings. "grants" refuses a driver that gives none.
        ram: where the guest may have RAM, by guest physical address; by default as the
            xenstore says.
        limit: how many bytes of it may stay mapped by foreign mappings; None for as many as are touched.
        kernel_kicks: has the kernel take kicks by itself, where it can (ioeventfd, XEN_PRIVCMD_EVENTFD), so
            that the driver's vCPU does not wait for a turn of this process. Not for a process that may be
            killed: Linux (seen: 6.12) then goes on looking for kicks in memory that went with it, and **dom0
            crashes** at the next one.
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen` (or
            one of its domains, where the device is served from). It has no xenstore: say ``base``.

    Raises:
        ValueError: no guest has this ``domid``, ``memory`` is none of the three, or ``irq`` or ``hypervisor``
            comes without ``base``.
    """

    connect = False
    listens = False

    def __init__(
        self,
        domid: int,
        device: int | None = None,
        *,
        base: int | None = None,
        irq: int | None = None,
        hvm: bool = False,
        memory: Memory = "any",
        ram: Sequence[range] | None = None,
        limit: int | None = None,
        kernel_kicks: bool = False,
        hypervisor: SimulatedXen | SimulatedDomain | None = None,
    ) -> None:
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"domid {domid} is no guest's: those are 0 to {DOMID_FIRST_RESERVED - 1}")
        if memory not in get_args(Memory):
            raise ValueError(f"memory={memory!r} is none of {', '.join(map(repr, get_args(Memory)))}")
        if base is None and irq is not None:
            raise ValueError(f"irq={irq} without base: both are given, or both come from the toolstack")
        if base is None and hypervisor is not None:
            raise ValueError("no base: a simulated Xen has no xenstore that would tell it")
        self.domid = domid
        self.device = device
        self.base = base
        self.irq = irq
        self.hvm = hvm
        self.memory = memory
        self.ram = ram
        self.limit = limit
        self.kernel_kicks = kernel_kicks
        self.hypervisor = hypervisor
        self.node: VirtioNode | None = None
        self._end: GuestEnd | None = None
        self._record: Callable[[GuestBus], int] | None = None
        self._in_turn = False

    def __repr__(self) -> str:
        where = f", device={self.device}" if self.device is not None else ""
        return f"XenGuest({self.domid}{where}{f', base={self.base:#x}' if self.base is not None else ''})"

    def attach(self, endpoint: Endpoint, device_id: int, /) -> bool:
        """Puts the device into its place in the guest.

        Raises:
            VirtioNodeError: the toolstack announced no such device, or several.
            XenCallError: Xen refused.
            OSError: Xen's devices cannot be opened.
            NegotiationError: the guest cannot be interrupted: one of x86 that is not known to be HVM.
            ForeignMapError: the xenstore does not say where the guest has its RAM; or a PV guest.
            ValueError: the address is impossible, or another device of this process is there.
        """
        base, irq = self._place(device_id)
        interrupt = None if irq is None else self._interrupt(irq)
        bus = GuestBus(self.domid, self._ram(), limit=self.limit, hypervisor=self.hypervisor)
        try:
            self._attach(endpoint, device_id, base, interrupt, bus)
            if self.hypervisor is None:
                self._end = GuestEnd(self.domid, bus)
            else:
                bus.close()  # the endpoint keeps it, and the machine tells of the guest's end
        except BaseException:
            bus.close()
            raise
        self._tell(XenbusState.INIT_WAIT)
        return True

    def outlive(self, record: Callable[[GuestBus], int], *, in_turn: bool) -> None:
        """Has the device go on in another process when this one ends, with the registers that are in the file
        which `record` opens. See :meth:`~xenvirt._native.Endpoint.attach_guest`."""
        self._record, self._in_turn = record, in_turn

    @property
    def bus(self) -> GuestBus | None:
        """What the guest's devices in this process share; None while it is not attached."""
        return None if self._end is None else self._end.bus

    def _attach(
        self,
        endpoint: Endpoint,
        device_id: int,
        base: int,
        interrupt: tuple[Literal["spi", "gsi"], int] | None,
        bus: GuestBus,
    ) -> None:
        record = None if self._record is None else self._record(bus)
        try:
            endpoint.attach_guest(
                bus,
                device_id,
                base,
                interrupt=interrupt,
                memory=self.memory,
                kernel_kicks=self.kernel_kicks,
                record=record,
                in_turn=self._in_turn,
            )
        finally:
            if record is not None:
                os.close(record)

    def remote_backend(self, device: RemoteDevice, /) -> RemoteBackend:
        """A daemon as a device of this guest: it maps the guest's memory itself.

        Its kind is what ``device`` says, or else what the toolstack announced.

        Raises:
            NegotiationError: the daemon cannot map a guest's memory (it has not XEN_MMAP, or the guest is a
                simulated one), or nobody says what kind of device it is.
            ForeignMapError: the xenstore does not say where the guest has its RAM; or a PV guest.
            DisconnectedError: nobody listens at its socket.
        """
        if self.hypervisor is not None:
            raise NegotiationError(f"{device!r}: a daemon cannot map the memory of a simulated guest")
        kind = device.device_id
        if kind is None:
            kind = self._announced_kind()
        if kind is None:
            raise NegotiationError(
                f"nobody says what kind of device {device!r} is, since the toolstack announced none that "
                f"{self!r} means: say RemoteDevice(socket, device_id)"
            )
        memory = DaemonMemory(self.domid, self._ram())
        return RemoteBackend(device, kind, memory.regions, need_xen_mmap, memory.close, memory.no_regions)

    def _ram(self) -> Sequence[range]:
        if self.ram:
            return self.ram
        if self.hypervisor is None:
            return guest_ram(self.domid).ranges()
        with ForeignMemory(hypervisor=self.hypervisor) as foreign:
            return foreign.guest_ram(self.domid)

    def _announced_kind(self) -> int | None:
        if self.base is not None:
            return None
        with XenStore() as store:
            nodes = [node for node in virtio_nodes(store, self.domid) if self.device in (None, node.devid)]
        return nodes[0].device_id if len(nodes) == 1 else None

    def remove(self) -> None:
        """Lets go of the guest."""
        if self._end is not None:
            self._end.close()
            self._end = None
            self._tell(XenbusState.CLOSED)

    def _place(self, device_id: int) -> tuple[int, int | None]:
        if self.base is not None:
            return self.base, self.irq
        with XenStore() as store:
            nodes = list(virtio_nodes(store, self.domid))
        fitting = [
            node
            for node in nodes
            if (node.devid == self.device if self.device is not None else node.device_id in (device_id, None))
        ]
        if len(fitting) != 1:
            names = "; ".join(node.name for node in nodes) or "none"
            wanted = f"number {self.device}" if self.device is not None else f"virtio device id {device_id}"
            raise VirtioNodeError(
                f"{len(fitting)} devices of domain {self.domid} are {wanted}, one is wanted. The toolstack "
                f"announced: {names}. Name one by device=, or say base= and irq=",
                f"backend/virtio/{self.domid}",
            )
        self.node = fitting[0]
        return self.node.base, self.node.irq

    def _interrupt(self, irq: int) -> tuple[Literal["spi", "gsi"], int]:
        if self.hypervisor is not None:
            return "spi", irq  # no guest is simulated that has others
        return guest_interrupt(self.domid, irq, hvm=self.hvm)

    def _tell(self, state: XenbusState) -> None:
        """Tells the toolstack, where it announced the device: it waits for it."""
        if self.node is not None:
            try:
                with XenStore() as store:
                    advance(store, self.node.path, state)
            except XenStoreError as error:
                log.warning("%r: the toolstack cannot be told: %s", self, error)
