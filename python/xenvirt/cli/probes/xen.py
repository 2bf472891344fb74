"""Probes: the interfaces of Xen that a domain's kernel gives to programs.

The numbers are those of Linux's include/uapi/xen/*.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable
from pathlib import Path

from .finding import Finding, opened, why_not_opened

IOCTL_PRIVCMD_HYPERCALL = 0x0030_5000
HYPERVISOR_XEN_VERSION = 17
XENVER_VERSION = 0
IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR = 0x0018_4702
IOCTL_GNTALLOC_DEALLOC_GREF = 0x0010_4706
IOCTL_EVTCHN_BIND_UNBOUND_PORT = 0x0004_4502
XS_READ = 2
XENSTORE_SECONDS = 2.0

NO_XEN = "this is no Xen domain"


def privcmd() -> Finding:
    """Asks the hypervisor for its version through /dev/xen/privcmd."""

    def attempt(fd: int) -> str:
        # In a buffer that can change: only then ioctl gives what the hypercall returned, not the buffer.
        call = bytearray(struct.pack("=6Q", HYPERVISOR_XEN_VERSION, XENVER_VERSION, *[0] * 4))
        version = fcntl.ioctl(fd, IOCTL_PRIVCMD_HYPERCALL, call, True)
        return f"the hypervisor answers ({_hypervisor_version(version)})"

    return _device(
        "Xen hypercalls", "privcmd", "xen-privcmd", "foreign mappings and IOREQ servers, in dom0", attempt
    )


def gntdev() -> Finding:
    """Asks /dev/xen/gntdev about an address that it did not map."""

    def attempt(fd: int) -> str:
        return _refuses(fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, bytes(24))

    return _device("Xen grants", "gntdev", "xen-gntdev", "guests that share their memory by grants", attempt)


def gntalloc() -> Finding:
    """Gives a grant back that was never made."""

    def attempt(fd: int) -> str:
        return _refuses(fd, IOCTL_GNTALLOC_DEALLOC_GREF, struct.pack("=QIxxxx", 1 << 40, 1))

    return _device(
        "Xen grants to others", "gntalloc", "xen-gntalloc", "tests that grant memory themselves", attempt
    )


def evtchn() -> Finding:
    """Makes an event channel, which goes away with the descriptor."""

    def attempt(fd: int) -> str:
        port = fcntl.ioctl(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, struct.pack("=I", 0))
        return "an event channel could be made" + (
            f" (port {port})" if isinstance(port, int) and port else ""
        )

    return _device("Xen event channels", "evtchn", "xen-evtchn", "notifications of Xen guests", attempt)


def xenstore() -> Finding:
    """Reads this domain's number from the xenstore."""

    def attempt(fd: int) -> str:
        path = b"domid\0"
        os.write(fd, struct.pack("<4I", XS_READ, 0, 0, len(path)) + path)
        if not select.select([fd], [], [], XENSTORE_SECONDS)[0]:
            raise TimeoutError(errno.ETIMEDOUT, "xenstored does not answer")
        reply = os.read(fd, 4096)
        if len(reply) < 16:
            raise OSError(errno.EPROTO, "what answers is no xenstore")
        return f"this is domain {reply[16:].decode(errors='replace').rstrip(chr(0))}"

    return _device("xenstore", "xenbus", "xenfs", "finding and attaching guests", attempt)


def probes() -> tuple[Callable[[], Finding], ...]:
    """All of Xen's probes, or one alone where there is no Xen: once is enough to say so."""
    if _under_xen() or Path("/dev/xen").exists():
        return (privcmd, gntdev, gntalloc, evtchn, xenstore)
    return (privcmd,)


def _device(name: str, node: str, module: str, needed_for: str, attempt: Callable[[int], str]) -> Finding:
    path = f"/dev/xen/{node}"
    try:
        with opened(path) as fd:
            try:
                return Finding(name, True, attempt(fd), "", needed_for)
            except OSError as error:
                return Finding(
                    name, False, f"{path} opens, and does not work: {error.strerror}", "", needed_for
                )
    except OSError as error:
        under_xen = _under_xen()
        missing = (
            f"modprobe {module}"
            if under_xen
            else "boot this machine under Xen, or see docs for a dom0 in QEMU"
        )
        found, advice = why_not_opened(path, error, missing)
        return Finding(name, False, found if under_xen else f"{NO_XEN} ({found})", advice, needed_for)


def _refuses(fd: int, request: int, argument: bytes) -> str:
    """A driver that knows the request calls its argument wrong; what is no such driver does not know the
    request.
    """
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return "the driver answers"
        raise
    return "the driver answers"


def _under_xen() -> bool:
    try:
        return Path("/sys/hypervisor/type").read_text().strip() == "xen"
    except OSError:
        return False


def _hypervisor_version(number: int) -> str:
    return f"Xen {number >> 16}.{number & 0xFFFF}" if number else "Xen"
