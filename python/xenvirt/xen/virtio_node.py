"""The xenstore nodes by which the toolstack announces a guest's virtio devices, read and checked.

Two kinds are written by libxl, both in ``backend`` below the backend's domain:

- ``virtio/DOMID/DEVID``, for ``virtio = [...]`` in xl.cfg, since Xen 4.18 (libxl_virtio.c): ``type``
  ("virtio,device22": the device id in hexadecimal digits, as in the device tree binding), ``base``
  ("0x2000000"), ``irq``, ``transport`` ("mmio") and ``grant_usage`` ("0" or "1").
- ``virtio_disk/DOMID/DEVID``, for ``specification=virtio`` in a disk, since Xen 4.17 (libxl_disk.c): ``base``
  in decimal, ``irq``, ``transport``, and what every disk has: ``params`` (the target), ``mode`` ("r", "w").

Both have ``frontend``, ``frontend-id``, ``online`` and ``state`` (:class:`~xenvirt.xen.xenbus.XenbusState`).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from xenvirt.errors import VirtioNodeError, XenStoreError
from xenvirt.virtio.ids import DeviceId
from xenvirt.xen.xenbus import XenbusState
from xenvirt.xen.xenstore import Transaction, XenStore
from xenvirt.xen.xenstore.paths import joined

KINDS = ("virtio", "virtio_disk")
"""The names of the folders below ``backend``."""

SLOT_BYTES = 0x200
"""What libxl reserves for the registers of one device (libxl_arm.c, VIRTIO_MMIO_DEV_SIZE)."""
ADDRESS_MAX = (1 << 64) - SLOT_BYTES
IRQ_MAX = 1019
"""The last interrupt of a GIC that is no special one (Arm's GIC architecture, INTIDs)."""

_TYPE = re.compile(r"virtio,device([0-9a-f]{1,8})?")


@dataclass(frozen=True)
class VirtioNode:
    """One virtio device of a guest, as the toolstack announces it."""

    domid: int
    """The guest."""
    devid: int
    """The toolstack's number of the device: for a disk what ``xvda`` stands for (51712), else 0, 1, 2 ..."""
    kind: str
    """"virtio" or "virtio_disk"."""
    path: str
    """The backend's node, ``/local/domain/0/backend/virtio/3/0``; empty for a device without one."""
    device_id: int | None
    """What it is (:class:`~xenvirt.virtio.ids.DeviceId`); None where ``type`` names none."""
    base: int
    """The guest physical address of its registers, 0x200 bytes."""
    irq: int
    """Its interrupt: on Arm the number that Xen's set_irq_level takes, SPIs from 32."""
    grants: bool
    """Whether the guest offers its memory by grants."""
    state: XenbusState
    """The backend's state when it was read."""
    online: bool
    """False when the toolstack wants it gone."""
    read_only: bool
    """A disk that is not to be written."""
    target: str | None
    """A disk's file or device, as xl.cfg names it."""
    uuid: str | None
    """Of the guest: tells it from another that gets its id later. None where this domain may not read it."""

    @property
    def name(self) -> str:
        """For messages: "domain 3, virtio device 0 (entropy)"."""
        what = type_name(self.device_id)
        kind = "virtio disk" if self.kind == "virtio_disk" else "virtio device"
        return f"domain {self.domid}, {kind} {self.devid} ({what} at {self.base:#x}, interrupt {self.irq})"

    def is_same_device(self, other: VirtioNode) -> bool:
        """Whether it is the same device of the same guest, whatever its state."""
        return replace(self, state=other.state, online=other.online) == other


def type_name(device_id: int | None) -> str:
    """ "entropy", "device 77", or "of any type"."""
    if device_id is None:
        return "of any type"
    try:
        return DeviceId(device_id).name.lower().replace("_", "-")
    except ValueError:
        return f"device {device_id}"


def backend_folders(store: XenStore) -> tuple[str, ...]:
    """Where this domain's backends are announced: ``/local/domain/0/backend/virtio`` and its sibling.

    Raises:
        XenStoreError: this domain does not know its id.
    """
    home = store.domain_path(int(store.read("domid")))
    return tuple(joined(home, "backend", kind) for kind in KINDS)


def virtio_nodes(store: XenStore, domid: int | None = None) -> Iterator[VirtioNode]:
    """All devices that are announced to this domain, or those of one guest.

    Raises:
        VirtioNodeError: a node is not what libxl writes. Take :func:`node_paths` and :func:`read_node` to
            go on with the others.
    """
    for path in node_paths(store, domid):
        node = read_node(store, path)
        if node is not None:
            yield node


def node_paths(store: XenStore, domid: int | None = None) -> Iterator[str]:
    """The paths of all nodes that may be devices, complete or not."""
    for folder in backend_folders(store):
        guests = [str(domid)] if domid is not None else numbers_in(store, folder)
        for guest in guests:
            for device in numbers_in(store, joined(folder, guest)):
                yield joined(folder, guest, device)


def numbers_in(store: XenStore, path: str) -> list[str]:
    """The names below a node that are numbers; none where it does not exist."""
    try:
        names = store.list(path)
    except XenStoreError as error:
        if error.errno != errno.ENOENT:
            raise
        return []
    return [name for name in names if name.isascii() and name.isdigit()]


def read_node(store: XenStore, path: str) -> VirtioNode | None:
    """The device that a backend's node announces; None where there is none (yet): without ``state``.

    It is read in one transaction, so never half of it.

    Raises:
        VirtioNodeError: something of it is missing or impossible; the message names it.
        XenStoreError: this domain may not read it.
    """
    return store.transact(lambda transaction: _read(transaction, path))


def _read(transaction: Transaction, path: str) -> VirtioNode | None:
    kind, guest, device = path.split("/")[-3:]
    state = transaction.get(f"{path}/state")
    if state is None:
        return None
    transport = transaction.get(f"{path}/transport")
    if transport != "mmio":
        raise VirtioNodeError(f"{path}/transport is {transport!r}; 'mmio' is all that can be served", path)
    return VirtioNode(
        domid=int(guest),
        devid=int(device),
        kind=kind,
        path=path,
        device_id=DeviceId.BLOCK if kind == "virtio_disk" else _device_id(transaction, path),
        base=_number(transaction, f"{path}/base", ADDRESS_MAX),
        irq=_number(transaction, f"{path}/irq", IRQ_MAX),
        grants=(transaction.get(f"{path}/grant_usage") or "0") != "0",
        state=XenbusState.parse(state),
        online=transaction.get(f"{path}/online") != "0",
        read_only=transaction.get(f"{path}/mode") == "r",
        target=transaction.get(f"{path}/params") if kind == "virtio_disk" else None,
        uuid=transaction.get(f"/local/domain/{guest}/vm"),
    )


def _device_id(transaction: Transaction, path: str) -> int | None:
    text = transaction.get(f"{path}/type")
    match = _TYPE.fullmatch(text or "")
    if match is None:
        raise VirtioNodeError(
            f"{path}/type is {text!r}, not 'virtio,device' and the device id in hexadecimal digits, as in "
            "'virtio,device22' for i2c",
            path,
        )
    return int(match[1], 16) if match[1] else None


def _number(transaction: Transaction, path: str, greatest: int) -> int:
    text = transaction.get(path)
    try:
        value = int(text or "", 0)
    except ValueError:
        value = -1
    if not 0 <= value <= greatest:
        raise VirtioNodeError(
            f"{path} is {text!r}, not a number of 0 to {greatest:#x}", path.rpartition("/")[0]
        )
    return value
