"""What xl's `device_tree=` takes: a flattened device tree whose /passthrough node goes into the guest's own.

The format is chapter 5 of the Devicetree Specification, version 0.4; the nodes are those of Linux's
Documentation/devicetree/bindings/virtio/mmio.yaml and .../iommu/xen,grant-dma.yaml.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

MAGIC, VERSION, COMPATIBLE_VERSION = 0xD00D_FEED, 17, 16
BEGIN_NODE, END_NODE, PROPERTY, END = 1, 2, 3, 9
HEADER_SIZE = 40
NO_RESERVATIONS = bytes(16)

GIC = 65000
"""The handle of the interrupt controller in the guest's tree (GUEST_PHANDLE_GIC in libxl)."""
GRANTS = 1
FIRST_SPI = 32
EDGE_RISING = 0xF01
"""How libxl itself describes the interrupt of a virtio device; Linux looks at the last four bits."""
REGISTERS = 0x200
"""Bytes of a device's register page, see the virtio specification, 4.2.2."""


@dataclass
class Node:
    """A node under construction. Properties are of 32-bit cells, or text."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def cells(self, name: str, *values: int) -> None:
        self.properties[name] = struct.pack(f">{len(values)}I", *values)

    def text(self, name: str, value: str) -> None:
        self.properties[name] = value.encode() + b"\0"

    def flag(self, name: str) -> None:
        self.properties[name] = b""

    def add(self, name: str) -> Node:
        self.nodes.append(Node(name))
        return self.nodes[-1]


@dataclass(frozen=True)
class MmioDevice:
    """Where a guest is to find a virtio-mmio device."""

    address: int
    """Guest physical address of its registers."""
    interrupt: int
    """Number of its interrupt as the guest and Xen count: a shared one (SPI), from 32 up."""
    grants: bool = False
    """Whether the guest gives its memory by grants to domain 0, or leaves it to foreign mappings."""


def passthrough(devices: Iterable[MmioDevice]) -> bytes:
    """The tree that gives a guest these devices."""
    root = Node("")
    bus = root.add("passthrough")
    for node in (root, bus):
        node.cells("#address-cells", 2)
        node.cells("#size-cells", 2)
    bus.text("compatible", "simple-bus")
    bus.flag("ranges")
    bus.cells("interrupt-parent", GIC)
    iommu = bus.add("xen_iommu")
    iommu.text("compatible", "xen,grant-dma")
    iommu.cells("#iommu-cells", 1)
    iommu.cells("phandle", GRANTS)
    for device in devices:
        node = bus.add(f"virtio@{device.address:x}")
        node.text("compatible", "virtio,mmio")
        node.cells("reg", device.address >> 32, device.address & 0xFFFF_FFFF, 0, REGISTERS)
        node.cells("interrupts", 0, device.interrupt - FIRST_SPI, EDGE_RISING)
        node.flag("dma-coherent")
        if device.grants:
            node.cells("iommus", GRANTS, 0)  # granted to domain 0
    return flattened(root)


def flattened(root: Node) -> bytes:
    """The tree as a file."""
    names = bytearray()
    structure = _structure(root, names) + struct.pack(">I", END)
    structure_at = HEADER_SIZE + len(NO_RESERVATIONS)
    names_at = structure_at + len(structure)
    header = struct.pack(
        ">10I",
        *(MAGIC, names_at + len(names), structure_at, names_at, HEADER_SIZE),
        *(VERSION, COMPATIBLE_VERSION, 0, len(names), len(structure)),
    )
    return header + NO_RESERVATIONS + structure + names


def _structure(node: Node, names: bytearray) -> bytes:
    data = struct.pack(">I", BEGIN_NODE) + _padded(node.name.encode() + b"\0")
    for name, value in node.properties.items():
        data += struct.pack(">3I", PROPERTY, len(value), len(names)) + _padded(value)
        names += name.encode() + b"\0"
    return data + b"".join(_structure(child, names) for child in node.nodes) + struct.pack(">I", END_NODE)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
