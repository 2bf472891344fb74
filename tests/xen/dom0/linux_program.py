"""A program for a Linux guest on aarch64: system calls one after the other, in a static ELF file.

A call that fails ends it with status 1. Descriptors are known beforehand: the first that is opened is 3.
"""

from __future__ import annotations

import struct
from typing import Self

BASE, DATA = 0x40_0000, 0x41_0000
PAGE = 0x1_0000
"""A page of any kernel."""

AT_FDCWD = 2**64 - 100
OPENAT, READ, WRITE, IOCTL, EXIT = 56, 63, 64, 29, 93
"""Linux, include/uapi/asm-generic/unistd.h"""


class LinuxProgram:
    """Calls, appended one after the other."""

    def __init__(self) -> None:
        self._code: list[int] = []
        self._data = bytearray()

    def room(self, size: int) -> int:
        """The address of zeroes."""
        return self._place(bytes(size))

    def _place(self, data: bytes) -> int:
        self._data += bytes(-len(self._data) % 8)
        address = DATA + len(self._data)
        self._data += data
        return address

    def _load(self, register: int, value: int) -> None:
        """movz and movk, 16 bits each."""
        for part in range(4):
            half = value >> (16 * part) & 0xFFFF
            self._code.append((0xF280_0000 if part else 0xD280_0000) | part << 21 | half << 5 | register)

    def _call(self, number: int, *arguments: int) -> Self:
        for register, value in [*enumerate(arguments), (8, number)]:
            self._load(register, value)
        self._code.append(0xD400_0001)  # svc #0
        if number != EXIT:
            size = 4 + 4 + 1  # what is passed over: two loads and the call
            self._code += [0xF100_001F, 0x5400_000A | (size + 1) << 5]  # cmp x0, #0; b.ge
            self._load(0, 1)
            self._load(8, EXIT)
            self._code.append(0xD400_0001)
        return self

    def open(self, path: str, flags: int) -> Self:
        return self._call(OPENAT, AT_FDCWD, self._place(path.encode() + b"\0"), flags, 0)

    def read(self, fd: int, address: int, size: int) -> Self:
        return self._call(READ, fd, address, size)

    def write(self, fd: int, address: int, size: int) -> Self:
        return self._call(WRITE, fd, address, size)

    def ioctl(self, fd: int, number: int, address: int) -> Self:
        return self._call(IOCTL, fd, number, address)

    def keep(self, address: int) -> Self:
        """Stores what the last call gave, in four bytes."""
        self._load(9, address)
        self._code.append(0xB900_0120)  # str w0, [x9]
        return self

    def exit(self) -> Self:
        return self._call(EXIT, 0)

    def elf(self) -> bytes:
        """The file: a segment of code, one of data."""
        code = struct.pack(f"<{len(self._code)}I", *self._code)
        header, segment = 64, 56
        assert len(code) <= PAGE - header - 2 * segment
        start = (
            b"\x7fELF"
            + bytes([2, 1, 1])
            + bytes(9)
            + struct.pack(
                "<HHIQQQIHHHHHH",
                *(2, 183, 1, BASE + header + 2 * segment, header, 0, 0, header, segment, 2, 0, 0, 0),
            )
        )
        size = header + 2 * segment + len(code)
        load = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, PAGE)
        data = struct.pack("<IIQQQQQQ", 1, 6, PAGE, DATA, DATA, len(self._data), len(self._data), PAGE)
        return (start + load + data + code).ljust(PAGE, b"\0") + self._data
