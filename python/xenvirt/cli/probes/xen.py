"""Probes: the interfaces of Xen that a domain's kernel gives to programs.

The numbers are those of Linux's include/uapi/xen/*.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import struct
from collections.abc import Callable
from pathlib import Path

from .finding import Finding, opened, why_not_opened

IOCTL_PRIVCMD_HYPERCALL = 0x0030_5000
IOCTL_PRIVCMD_MMAPBATCH_V2 = 0x0020_5004
IOCTL_PRIVCMD_IRQFD = 0x4018_5008
IOCTL_PRIVCMD_IOEVENTFD = 0x4030_5009
PRIVCMD_CALLS = {
    "frames with an error for each (MMAPBATCH_V2, Linux 3.8)": IOCTL_PRIVCMD_MMAPBATCH_V2,
    "device model operations (DM_OP, 4.11)": 0x0010_5005,
    "RESTRICT (4.11)": 0x0002_5006,
    "resources (MMAP_RESOURCE, 4.18)": 0x0020_5007,
}
IOCTL_GNTDEV_GRANT_COPY = 0x0010_4708
DOMID_INVALID = 0x7FF4
HYPERVISOR_XEN_VERSION = 17
XENVER_VERSION = 0
IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR = 0x0018_4702
IOCTL_GNTALLOC_DEALLOC_GREF = 0x0010_4706
IOCTL_EVTCHN_BIND_UNBOUND_PORT = 0x0004_4502
XS_READ = 2
XENSTORE_SECONDS = 2.0

NO_XEN = "this is no Xen domain"
EVENTFD_KERNEL = "Linux 6.7 or newer with CONFIG_XEN_PRIVCMD_EVENTFD, which Debian's kernels lack"
CONSEQUENCES = {
    "PV": "touching a frame that failed to map is a SIGBUS; kicks are not given to the kernel",
    "PVH": "touching a frame that failed to map is no fault, it reads ones; a mapped frame needs a page",
    "Arm": "touching a frame that failed to map is a SIGKILL; a mapped frame needs a page to stand for it",
}
"""What the kind of dom0 means for a program that maps, see docs/xen.md."""


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


def domain() -> Finding:
    """Looks whether this domain may control others, and how Xen runs it."""
    name, needed = "Xen domain", "foreign mappings and IOREQ servers; a driver domain has grants alone"
    kind = domain_kind()
    named = f"{'an' if kind == 'Arm' else 'a'} {kind}"
    try:
        control = "control_d" in Path("/proc/xen/capabilities").read_text()
    except OSError:
        found = f"{named} domain; /proc/xen is not mounted, so whether it is a dom0 is not known"
        return Finding(name, False, found, "mount -t xenfs xenfs /proc/xen", needed)
    if not control:
        return Finding(name, False, f"{named} domain, and no dom0", "", needed)
    return Finding(name, True, f"{named} dom0: {CONSEQUENCES[kind]}", "", needed)


def privcmd_calls() -> Finding:
    """Asks which calls /dev/xen/privcmd knows."""

    def attempt(fd: int) -> str:
        missing = [call for call, request in PRIVCMD_CALLS.items() if not _knows(fd, request)]
        if missing:
            raise OSError(errno.ENOTTY, f"the kernel is too old for {', '.join(missing)}")
        return ", ".join(PRIVCMD_CALLS)

    needed = "foreign mappings, IOREQ servers, and to hand a descriptor to a daemon that is trusted less"
    return _device("privcmd's calls", "privcmd", "xen-privcmd", needed, attempt)


def placeholders() -> Finding:
    """Maps a frame of a domain that is not there, and looks where the page that stands for it came from."""

    def attempt(fd: int) -> str:
        if not _knows(fd, IOCTL_PRIVCMD_MMAPBATCH_V2):
            raise OSError(errno.ENOTTY, "it maps nothing")
        if domain_kind() == "PV":
            return "a PV dom0 needs none"
        with mmap.mmap(fd, mmap.PAGESIZE) as window:
            place = ctypes.c_char.from_buffer(window)
            count = mmap.PAGESIZE // 4096
            frames, errors = (ctypes.c_uint64 * count)(), (ctypes.c_int * count)()
            addresses = [ctypes.addressof(one) for one in (place, frames, errors)]
            try:
                fcntl.ioctl(
                    fd, IOCTL_PRIVCMD_MMAPBATCH_V2, struct.pack("=IHxx3Q", count, DOMID_INVALID, *addresses)
                )
            finally:
                del place
        if "Xen scratch" not in Path("/proc/iomem").read_text():
            raise OSError(errno.ENOMEM, "each mapped frame takes a page of this domain's RAM away")
        return "pages that stand for mapped frames are address space, and no RAM"

    return _device(
        "pages for frames",
        "privcmd",
        "xen-privcmd",
        "large guests: otherwise this domain pays for each mapped or granted page with RAM of its own",
        attempt,
        "a kernel with CONFIG_XEN_UNPOPULATED_ALLOC",
    )


def interrupts_by_eventfd() -> Finding:
    """Asks whether the kernel raises interrupts for an eventfd (IRQFD)."""

    def attempt(fd: int) -> str:
        return _has(fd, IOCTL_PRIVCMD_IRQFD, "the kernel raises a guest's interrupt when one is signalled")

    needed = "interrupts without a turn through this program; it raises them by itself otherwise"
    return _device("Xen irqfd", "privcmd", "xen-privcmd", needed, attempt, EVENTFD_KERNEL)


def kicks_by_eventfd() -> Finding:
    """Asks whether the kernel signals an eventfd when a guest kicks a queue (IOEVENTFD), and may."""

    def attempt(fd: int) -> str:
        if domain_kind() == "PV":
            raise OSError(errno.EOPNOTSUPP, "a PV dom0's kernel crashes of it, so it is not used here")
        return _has(fd, IOCTL_PRIVCMD_IOEVENTFD, "the kernel signals one when a guest kicks a queue")

    needed = "kicks without a turn through this program; it answers each as an IOREQ otherwise"
    advice = "a PVH dom0: dom0=pvh among Xen's options" if domain_kind() == "PV" else EVENTFD_KERNEL
    return _device("Xen ioeventfd", "privcmd", "xen-privcmd", needed, attempt, advice)


def hypercall_buffers() -> Finding:
    """Maps a page of /dev/xen/hypercall."""

    def attempt(fd: int) -> str:
        with mmap.mmap(fd, mmap.PAGESIZE) as buffer:
            buffer[0] = 1
        return "the kernel gives pages that stay where they are"

    needed = "hypercalls that never fail with EFAULT; locked memory is taken otherwise"
    return _device("hypercall buffers", "hypercall", "xen-privcmd", needed, attempt, "Linux 4.18 or newer")


def gntdev() -> Finding:
    """Asks /dev/xen/gntdev about an address that it did not map."""

    def attempt(fd: int) -> str:
        answer = _refuses(fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, bytes(24))
        copies = "Xen copies for us" if _knows(fd, IOCTL_GNTDEV_GRANT_COPY) else "no copies: Linux before 4.8"
        return f"{answer}; {copies}"

    return _device("Xen grants", "gntdev", "xen-gntdev", "guests that share their memory by grants", attempt)


def gntalloc() -> Finding:
    """Gives a grant back that was never made."""

    def attempt(fd: int) -> str:
        answer = _refuses(fd, IOCTL_GNTALLOC_DEALLOC_GREF, struct.pack("=QIxxxx", 1 << 40, 1))
        try:
            limit = Path("/sys/module/xen_gntalloc/parameters/limit").read_text().strip()
        except OSError:
            return answer
        return f"{answer}; up to {limit} pages, all programs together"

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
        return (
            *(domain, privcmd, privcmd_calls, placeholders, interrupts_by_eventfd, kicks_by_eventfd),
            *(hypercall_buffers, gntdev, gntalloc, evtchn, xenstore),
        )
    return (privcmd,)


def domain_kind() -> str:
    """ "PV", "PVH" or "Arm": how Xen runs this domain."""
    if platform.machine() == "aarch64":
        return "Arm"
    try:
        return "PV" if Path("/sys/hypervisor/guest_type").read_text().strip() == "PV" else "PVH"
    except OSError:  # Linux before 4.13
        return "PV"


def _knows(fd: int, request: int) -> bool:
    """A driver that knows a request looks for its argument, and there is none."""
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


def _has(fd: int, request: int, found: str) -> str:
    if not _knows(fd, request):
        raise OSError(errno.ENOTTY, "the kernel has it not")
    return found


def _device(
    name: str,
    node: str,
    module: str,
    needed_for: str,
    attempt: Callable[[int], str],
    advice: str = "",
) -> Finding:
    path = f"/dev/xen/{node}"
    try:
        with opened(path) as fd:
            try:
                return Finding(name, True, attempt(fd), "", needed_for)
            except OSError as error:
                found = f"{path} opens, and does not work: {error.strerror}"
                return Finding(name, False, found, advice, needed_for)
    except OSError as error:
        under_xen = _under_xen()
        missing = (
            f"modprobe {module}"
            if under_xen
            else "boot this machine under Xen, or try a dom0 in QEMU: xenvirt lab"
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
