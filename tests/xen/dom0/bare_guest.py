"""A bare PVH guest for x86: a page of machine code in an ELF file, put together here by the instruction.

The code runs in 32-bit protected mode without paging, segments from 0 to 4 GiB, interrupts off, as the PVH
entry point says (xen/include/public/arch-x86/hvm/start_info.h and Xen's docs/misc/pvh.pandoc).
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Self

from .linux_guest import xl

FRAME = 4096
BASE = 0x10_0000
"""Where the guest's pages are: code, then what it leaves behind, then a buffer, then the hypercall page."""
RESULTS, BUFFER, HYPERCALLS, SHARED = (BASE + page * FRAME for page in (1, 2, 3, 4))
FRAMES = range(BASE // FRAME, BASE // FRAME + 5)

PHYS32_ENTRY = 18
"""XEN_ELFNOTE_PHYS32_ENTRY: where the guest begins."""

CONFIGURATION = """\
name = "{name}"
type = "pvh"
kernel = "{kernel}"
memory = 32
vcpus = {processors}
on_reboot = "destroy"
on_crash = "destroy"
"""


class Program:
    """Instructions, one after the other: as code, and as steps for who has no processor to run it."""

    MOVS, INS, OUTS = 0xA4, 0x6C, 0x6E
    """Opcodes of string instructions on bytes."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        """Names of methods here, and their arguments; not those of `emit`."""
        self._results = 0

    def _step(self, name: str, *arguments: int) -> None:
        self.steps.append((name, arguments))

    def emit(self, *code: int | bytes) -> Self:
        for one in code:
            self.code += one if isinstance(one, bytes) else bytes([one])
        return self

    # ---- memory, by absolute address

    def read(self, size: int, address: int) -> Self:
        """Reads into al, ax, eax or mm0."""
        self._step("read", size, address)
        prefix = {1: b"\xa0", 2: b"\x66\xa1", 4: b"\xa1", 8: b"\x0f\x6f\x05"}
        return self.emit(prefix[size], _word(address))

    def write(self, size: int, address: int) -> Self:
        """Writes al, ax, eax or mm0."""
        self._step("write", size, address)
        prefix = {1: b"\xa2", 2: b"\x66\xa3", 4: b"\xa3", 8: b"\x0f\x7f\x05"}
        return self.emit(prefix[size], _word(address))

    def set(self, value: int) -> Self:
        """Loads eax."""
        self._step("set", value)
        return self.emit(0xB8, _word(value))

    def keep(self, size: int) -> Self:
        """Appends al, ax, eax or mm0 to the results, in 8 bytes."""
        self.write(size, RESULTS + 8 * self._results)
        self._results += 1
        return self

    # ---- ports

    def read_port(self, size: int, port: int) -> Self:
        self._step("read_port", size, port)
        self.emit(0xBA, _word(port))
        return self.emit({1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size])

    def write_port(self, size: int, port: int) -> Self:
        self._step("write_port", size, port)
        self.emit(0xBA, _word(port))
        return self.emit({1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[size])

    # ---- with a rep prefix

    def repeat(
        self, opcode: int, size: int, count: int, *, source: int = 0, target: int = 0, port: int = 0
    ) -> Self:
        """A string instruction; the direction is that of the last `direction`. `opcode` is that for bytes."""
        self._step("repeat", opcode, size, count, source, target, port)
        self.emit(0xBE, _word(source), 0xBF, _word(target), 0xB9, _word(count), 0xBA, _word(port))
        width = {1: b"\xf3", 2: b"\xf3\x66", 4: b"\xf3"}[size]
        return self.emit(width, opcode if size == 1 else opcode + 1)

    def copy(self, size: int, count: int, source: int, target: int) -> Self:
        """rep movs"""
        return self.repeat(self.MOVS, size, count, source=source, target=target)

    def port_to_memory(self, size: int, count: int, port: int, target: int) -> Self:
        """rep ins"""
        return self.repeat(self.INS, size, count, port=port, target=target)

    def memory_to_port(self, size: int, count: int, source: int, port: int) -> Self:
        """rep outs"""
        return self.repeat(self.OUTS, size, count, source=source, port=port)

    def direction(self, down: bool) -> Self:
        self._step("direction", down)
        return self.emit(0xFD if down else 0xFC)

    # ---- hypercalls

    def enable_hypercalls(self) -> Self:
        """Has Xen fill the hypercall page (its leaves are at 0x4000_0000); the stack ends the buffer."""
        self.emit(0xBC, _word(BUFFER + FRAME))
        self.set(0x4000_0002).emit(b"\x31\xc9", b"\x0f\xa2")  # xor ecx, ecx; cpuid
        self.emit(b"\x89\xd9", 0xB8, _word(HYPERCALLS), b"\x31\xd2", b"\x0f\x30")  # ecx = ebx; wrmsr
        return self

    def hypercall(self, number: int, operation: int, argument: int) -> Self:
        """With an operation and the address of its argument."""
        self.emit(0xBB, _word(operation), 0xB9, _word(argument))
        return self.emit(0xB8, _word(HYPERCALLS + 32 * number), b"\xff\xd0")

    def stop(self) -> Self:
        """For ever."""
        return self.emit(b"\xfa\xf4\xeb\xfd")


def _word(value: int) -> bytes:
    return struct.pack("<I", value)


def elf(code: bytes) -> bytes:
    """A 32-bit ELF file: one segment for the code, at `BASE`, and the note that says where it begins."""
    header, segment = 52, 32
    note = struct.pack("<III4sI", 4, 4, PHYS32_ENTRY, b"Xen\0", BASE)
    note_at = header + 2 * segment
    code_at = FRAME
    identification = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    start = identification + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, BASE, header, 0, 0, header, segment, 2, 0, 0, 0
    )
    load = struct.pack("<8I", 1, code_at, BASE, BASE, len(code), len(FRAMES) * FRAME, 7, FRAME)
    notes = struct.pack("<8I", 4, note_at, 0, 0, len(note), len(note), 4, 4)
    return (start + load + notes + note).ljust(code_at, b"\0") + code


class BareGuest:
    """A domain with a program, created paused and destroyed when the block ends."""

    def __init__(self, folder: Path, name: str, program: Program, *, processors: int = 1) -> None:
        assert len(program.code) <= FRAME
        self.name = name
        (folder / f"{name}.elf").write_bytes(elf(bytes(program.code)))
        text = CONFIGURATION.format(name=name, kernel=folder / f"{name}.elf", processors=processors)
        (folder / f"{name}.cfg").write_text(text)
        xl("create", "-p", str(folder / f"{name}.cfg"))
        self.domid = int(xl("domid", name))

    def unpause(self) -> None:
        xl("unpause", self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["xl", "destroy", self.name], capture_output=True, check=False)
