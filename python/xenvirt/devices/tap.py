"""A tap as the backend of a network device: the guest's card is wired to an interface of this host."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenvirt import Session, VirtQueue
from xenvirt.virtio.net import NetFeature

from .net_backend import MAX_FRAME, NetBackend
from .readiness import IN, Readiness

if TYPE_CHECKING:
    from .net import NetDevice

log = logging.getLogger("xenvirt")

# Linux: include/uapi/linux/if_tun.h and if.h.
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9
TUNSETVNETLE: Final = 0x400454DC
IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08

BURST: Final = 64
"""Packets from the tap before others get their turn."""
PLAIN_FRAME: Final = 65536
"""Room for a frame that is not cut by GSO; the interface's MTU can be that large."""

OFFLOADS: Final = (
    NetFeature.CSUM
    | NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
)
"""Checksums and large packets, either way."""
_FROM_HOST: Final = {
    NetFeature.GUEST_CSUM: TUN_F_CSUM,
    NetFeature.GUEST_TSO4: TUN_F_TSO4,
    NetFeature.GUEST_TSO6: TUN_F_TSO6,
    NetFeature.GUEST_ECN: TUN_F_TSO_ECN,
}


class Tap(NetBackend):
    """A tap interface, made if there is none of this name.

    Where the kernel passes on the header of a packet (IFF_VNET_HDR, which all that are in use do), checksums
    and large packets are left to the other side as far as both agree; else the driver is offered nothing of
    the kind. With several queues the kernel spreads the flows over those that the driver uses.

    To bring the interface up, give it an address or a bridge, is the caller's business. It goes away with
    `close`, unless it was there before as a persistent one (``ip tuntap add dev tap0 mode tap``).

    Args:
        name: the interface's name, at most 15 bytes; with ``%d`` in it the kernel chooses the number.
        pairs: how many queues. A persistent interface has to be made for several (``multi_queue``).

    Attributes:
        name: the interface's name.
        refused: packets of the driver that the interface did not take.

    Raises:
        OSError: the interface cannot be made or opened: no right to (EPERM), in use by another (EBUSY), or of
            another kind (EINVAL).
    """

    def __init__(self, name: str = "tap%d", *, pairs: int = 1) -> None:
        if not 1 <= len(name.encode()) <= 15:
            raise ValueError(f"{name!r} cannot be an interface: a name has 1 to 15 bytes")
        self.pairs = pairs
        self.refused = 0
        self._fds: list[int] = []
        try:
            self.name = self._open(name)
        except OSError as error:
            self.close()
            raise OSError(
                error.errno, f"cannot open the tap: {os.strerror(error.errno or 0)}", name
            ) from error
        self.mtu = _interface_mtu(self.name)
        if self._set_offloads(sum(_FROM_HOST.values())):
            self.offloads = OFFLOADS
        self._device: NetDevice | None = None
        self._readiness: Readiness | None = None
        self._waiting: dict[int, bytes] = {}
        self._used: set[int] = {0}

    def _open(self, name: str) -> str:
        for _ in range(self.pairs):
            self._fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            flags = IFF_TAP | IFF_NO_PI | (IFF_MULTI_QUEUE if self.pairs > 1 else 0)
            name = _set_interface(self._fds[-1], name, flags | IFF_VNET_HDR)
        for fd in self._fds[1:]:
            _set_queue(fd, IFF_DETACH_QUEUE)
        return name

    def _set_offloads(self, offloads: int) -> bool:
        """What the kernel may leave to the driver. False if it knows nothing of the kind."""
        try:
            fcntl.ioctl(self._fds[0], TUNSETOFFLOAD, offloads)
        except OSError:
            return False
        return True

    def attach(self, device: NetDevice, session: Session) -> None:
        self._device = device
        self._waiting.clear()
        offloads = sum(flag for feature, flag in _FROM_HOST.items() if session.features & feature)
        for fd in self._fds:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", device.header_size))
            fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
        self._set_offloads(offloads)
        self._drain()
        self._readiness = Readiness(session, self._receive)
        self._attend(0)

    def detach(self) -> None:
        self._device = None
        self._waiting.clear()
        self.set_pairs(1)
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None

    def set_pairs(self, pairs: int) -> None:
        for pair in range(1, len(self._fds)):
            self._use(pair, pair < pairs)

    def transmit(self, pair: int, queue: VirtQueue) -> None:
        assert self._device is not None
        fd = self._fds[pair if pair in self._used else 0]
        for chain in queue:
            try:
                # Header and frame in one go, straight from the guest's memory.
                if chain.readable <= self._device.header_size + MAX_FRAME:
                    chain.read_to_file(fd)
            except OSError as error:
                # The interface is down (EIO), full (EAGAIN), or will not have such a packet (EINVAL).
                self.refused += 1
                log.debug("%s took no packet: %s", self.name, error)
            chain.complete()

    def receivable(self, pair: int) -> None:
        # A driver tells by its buffers which pairs it uses, also one whose commands QEMU keeps for itself.
        assert self._device is not None
        if pair < len(self._fds) and self._device.ready(pair):
            self._use(pair, True)
            self._attend(pair)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _use(self, pair: int, used: bool) -> None:
        """The kernel gives packets to the queues that are attached."""
        if used == (pair in self._used):
            return
        _set_queue(self._fds[pair], IFF_ATTACH_QUEUE if used else IFF_DETACH_QUEUE)
        if used:
            self._used.add(pair)
        else:
            self._used.discard(pair)
            if self._readiness is not None:
                self._readiness.want(self._fds[pair], 0)

    def _attend(self, pair: int) -> None:
        """Waits for packets while the driver has buffers for them."""
        assert self._device is not None
        waiting = self._waiting.pop(pair, None)
        if waiting is not None and not self._device.put(pair, waiting):
            self._waiting[pair] = waiting
        elif self._readiness is not None and pair in self._used:
            self._readiness.want(self._fds[pair], IN)

    def _receive(self, fd: int, _events: int) -> None:
        device, readiness = self._device, self._readiness
        assert device is not None
        assert readiness is not None
        pair = self._fds.index(fd)
        for _ in range(BURST):
            if not device.ready(pair):
                readiness.want(fd, 0)  # the driver kicks when it has buffers again
                return
            try:
                packet = os.read(fd, device.header_size + PLAIN_FRAME)
            except BlockingIOError:
                return
            except OSError as error:
                # Down, or detached under our feet: not the driver's fault, and no end.
                log.debug("%s gave no packet: %s", self.name, error)
                if error.errno not in (errno.EIO, errno.EBADFD):
                    raise
                return
            if not device.put(pair, packet):
                self._waiting[pair] = packet
                readiness.want(fd, 0)
                return

    def _drain(self) -> None:
        """What came while there was no driver, or for the one before, is out of date."""
        for fd in self._fds:
            try:
                while os.read(fd, PLAIN_FRAME):
                    pass
            except OSError:
                pass  # none left


def _interface_mtu(name: str) -> int | None:
    try:
        return int(Path(f"/sys/class/net/{name}/mtu").read_text())
    except (OSError, ValueError):
        return None  # for instance a /sys of another network namespace


def _set_interface(fd: int, name: str, flags: int) -> str:
    request = struct.pack("16sH22x", name.encode(), flags)
    return fcntl.ioctl(fd, TUNSETIFF, request)[:16].rstrip(b"\0").decode()


def _set_queue(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, TUNSETQUEUE, struct.pack("16sH22x", b"", flags))
