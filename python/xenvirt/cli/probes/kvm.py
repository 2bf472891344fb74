"""Probe: KVM, as far as running one instruction in a guest.

A host may have /dev/kvm and still run no guest (a nested one, for instance), so the file's being there says
little.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .finding import Finding, opened, why_not_opened

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_EXIT_HLT = 5

RESET_VECTOR = 0xFFFF_FFF0
"""Where an x86 CPU begins."""
HLT = b"\xf4"
SCRATCH = 0x7000_0000
"""Where Intel's CPUs may keep three pages for themselves."""
RUN_SECONDS = 2.0

NEEDED_FOR = "fast guests; without it QEMU emulates (-accel tcg)"


def kvm() -> Finding:
    """Opens /dev/kvm, makes a VM and a vCPU, and lets it run one instruction."""
    step = "open"
    try:
        with opened("/dev/kvm") as device:
            step = "KVM_GET_API_VERSION"
            version = fcntl.ioctl(device, KVM_GET_API_VERSION, 0)
            if version != 12:
                return Finding(
                    "KVM", False, f"its interface has version {version}, everybody needs 12", "", NEEDED_FOR
                )
            step = "KVM_CREATE_VM"
            with owned(fcntl.ioctl(device, KVM_CREATE_VM, 0)) as machine:
                step = "KVM_CREATE_VCPU"
                with owned(fcntl.ioctl(machine, KVM_CREATE_VCPU, 0)) as cpu:
                    if (
                        platform.machine() != "x86_64"
                        or threading.current_thread() is not threading.main_thread()
                    ):
                        return Finding(
                            "KVM", True, "a virtual machine and a vCPU can be made", "", NEEDED_FOR
                        )
                    step = "KVM_RUN"
                    reason = run_one_instruction(device, machine, cpu)
    except OSError as error:
        if step == "open":
            missing = (
                "modprobe kvm_intel or kvm_amd; in a virtual machine nesting must be switched on from outside"
            )
            found, advice = why_not_opened("/dev/kvm", error, missing, "kvm")
            return Finding("KVM", False, found, advice, NEEDED_FOR)
        return Finding(
            "KVM", False, f"/dev/kvm opens, and {step} fails: {error.strerror or error}", "", NEEDED_FOR
        )
    if reason == KVM_EXIT_HLT:
        return Finding("KVM", True, "a guest ran its first instruction", "", NEEDED_FOR)
    return Finding(
        "KVM", False, f"a guest stopped before its first instruction (exit {reason})", "", NEEDED_FOR
    )


def run_one_instruction(device: int, machine: int, cpu: int) -> int:
    """The exit reason of a guest whose reset vector holds HLT.

    Raises:
        OSError: KVM refused one of the steps, or did not come back.
    """
    with (
        mmap.mmap(-1, mmap.PAGESIZE) as code,
        mmap.mmap(cpu, fcntl.ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0)) as state,
    ):
        offset = RESET_VECTOR % mmap.PAGESIZE
        code[offset : offset + 1] = HLT
        pointer = ctypes.c_char.from_buffer(code)
        try:
            region = struct.pack(
                "<IIQQQ", 0, 0, RESET_VECTOR - offset, mmap.PAGESIZE, ctypes.addressof(pointer)
            )  # slot, flags, guest address, size, user address
            fcntl.ioctl(machine, KVM_SET_TSS_ADDR, SCRATCH)
            fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, region)
            with deadline(RUN_SECONDS):
                fcntl.ioctl(cpu, KVM_RUN, 0)
            return int.from_bytes(state[8:12], "little")
        finally:
            del pointer


@contextmanager
def owned(fd: int) -> Iterator[int]:
    """A descriptor that an ioctl made, closed at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Interrupts what blocks; on the main thread only.

    Raises:
        TimeoutError: it took longer.
    """

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the guest did not come back within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
