"""Probes: shared memory, huge pages, userfaultfd, io_uring."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import socket
from pathlib import Path

from .finding import Finding, opened

SYSCALLS = {"x86_64": {"userfaultfd": 323}, "aarch64": {"userfaultfd": 282}}
"""System calls that Python has no function for, and whose number differs by machine."""
IO_URING_SETUP = 425
"""The same number everywhere."""
USERFAULTFD_IOC_NEW = 0xAA00
UFFD_USER_MODE_ONLY = 1


def vhost_user() -> Finding:
    """What vhost-user connections are made of: a memfd passed over a socket and mapped, and an eventfd."""
    name, needed = "vhost-user", "everything that xenvirt does over sockets"
    try:
        size = mmap.PAGESIZE
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        memory, event = os.memfd_create("xenvirt-probe"), os.eventfd(0)
        with ours, theirs:
            try:
                os.ftruncate(memory, size)
                socket.send_fds(ours, [b"table"], [memory, event])
                _, passed, _, _ = socket.recv_fds(theirs, 16, 2)
                with mmap.mmap(memory, size) as here, mmap.mmap(passed[0], size) as there:
                    here[:5] = b"hello"
                    shared = there[:5] == b"hello"
                os.eventfd_write(event, 1)
                kicked = os.eventfd_read(passed[1]) == 1
                for fd in passed:
                    os.close(fd)
            finally:
                os.close(memory)
                os.close(event)
    except OSError as error:
        return Finding(name, False, f"sharing a memfd over a socket failed: {error}", "", needed)
    if not (shared and kicked):
        return Finding(name, False, "a memfd or an eventfd did not arrive as it was sent", "", needed)
    return Finding(name, True, "memory and events can be shared over a socket", "", needed)


def huge_pages() -> Finding:
    """A page of hugetlbfs, mapped and written."""
    name, needed = "huge pages", "guests and DPDK that keep their memory in hugetlbfs"
    size = _huge_page_size()
    label = f"{size >> 20} MiB"
    try:
        fd = os.memfd_create("xenvirt-probe", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    except OSError as error:
        return Finding(name, False, f"the kernel has no huge pages ({error.strerror})", "", needed)
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            memory[0] = 1
    except OSError as error:
        advice = "reserve some, as root: sysctl vm.nr_hugepages=64"
        return Finding(name, False, f"no page of {label} is free ({error.strerror})", advice, needed)
    finally:
        os.close(fd)
    return Finding(name, True, f"{_meminfo('HugePages_Free')} pages of {label} are free", "", needed)


def userfault() -> Finding:
    """userfaultfd, by its system call and by its device node."""
    name, needed = "userfaultfd", "postcopy migration"
    number = SYSCALLS.get(platform.machine(), {}).get("userfaultfd")
    reason = "not tried on this machine"
    if number is not None:
        for flags, what in (
            (0, "also for faults in the kernel"),
            (UFFD_USER_MODE_ONLY, "for faults in user mode only"),
        ):
            fd, error = _syscall(number, os.O_CLOEXEC | flags)
            if fd >= 0:
                os.close(fd)
                return Finding(name, True, what, "", needed)
            reason = os.strerror(error)
    advice = "as root: sysctl vm.unprivileged_userfaultfd=1"
    try:
        import fcntl

        with opened("/dev/userfaultfd") as node:
            os.close(fcntl.ioctl(node, USERFAULTFD_IOC_NEW, os.O_CLOEXEC))
        return Finding(name, True, "through /dev/userfaultfd", "", needed)
    except OSError:
        return Finding(name, False, f"refused: {reason}", advice, needed)


def io_uring() -> Finding:
    """io_uring_setup, with arguments that a kernel which has it calls bad."""
    name, needed = "io_uring", "the native file device"
    _, error = _syscall(IO_URING_SETUP, 0, 0)
    if error in (errno.EINVAL, errno.EFAULT):
        return Finding(name, True, "the kernel has it and lets us", "", needed)
    advice = "as root: sysctl kernel.io_uring_disabled=0" if error == errno.EPERM else ""
    return Finding(name, False, f"refused: {os.strerror(error)}", advice, needed)


def open_files() -> Finding:
    """The limit of open files: each queue takes three descriptors, each region of memory one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    works = soft >= 1024
    advice = "" if works else f"ulimit -n {min(hard, 4096)}"
    return Finding(
        "open files", works, f"up to {soft}, can be raised to {hard}", advice, "many devices in one process"
    )


def _huge_page_size() -> int:
    return int(_meminfo("Hugepagesize") or 2048) * 1024


def _meminfo(key: str) -> str:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return line.split()[1]
    return ""


def _syscall(number: int, *arguments: int) -> tuple[int, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return result, ctypes.get_errno()
