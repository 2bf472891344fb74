"""A kernel out of a Debian package: its image, and the modules that someone wants of it."""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from .packages import members

WANTED = (
    "boot/vmlinuz-*",
    "lib/modules/*/modules.builtin",
    "lib/modules/*/kernel/crypto/*",
    "lib/modules/*/kernel/arch/*/crypto/*",
    "lib/modules/*/kernel/drivers/block/*",
    "lib/modules/*/kernel/drivers/char/*",
    "lib/modules/*/kernel/drivers/i2c/*",
    "lib/modules/*/kernel/drivers/input/*",
    "lib/modules/*/kernel/drivers/net/*.ko*",
    "lib/modules/*/kernel/drivers/scsi/*.ko*",
    "lib/modules/*/kernel/drivers/virtio/*",
    "lib/modules/*/kernel/drivers/xen/*",
    "lib/modules/*/kernel/fs/*",
    "lib/modules/*/kernel/lib/*",
    "lib/modules/*/kernel/mm/*",
    "lib/modules/*/kernel/net/*",
    "lib/modules/*/kernel/sound/*",
)
"""The parts of a kernel package's 400 MB that a guest or a dom0 of ours may want."""


def module_name(file: str) -> str:
    """How a module calls itself, by the name of its file."""
    return file.partition(".ko")[0].replace("-", "_")


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules (the one that has `modules.builtin`)."""

    image: Path
    modules: Path

    @classmethod
    def unpacked(cls, folder: Path) -> Kernel | None:
        """The kernel of a package whose `WANTED` were unpacked here."""
        images = sorted(folder.glob("boot/vmlinuz-*"))
        modules = sorted(folder.glob("lib/modules/*")) or sorted(folder.glob("usr/lib/modules/*"))
        return cls(images[-1], modules[-1]) if images and modules else None

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {module_name(path.name): path for path in self.modules.rglob("*.ko*")}

    @cached_property
    def _builtin(self) -> frozenset[str]:
        return frozenset(
            module_name(Path(line).name) for line in (self.modules / "modules.builtin").read_text().split()
        )

    def modules_for(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules and of all that they need, in an order in which insmod takes them."""
        ordered: dict[str, Path] = {}
        for name in names:
            for found in self._with_needs(module_name(name)):
                ordered.setdefault(found.name, found)
        return list(ordered.values())

    def _with_needs(self, name: str) -> Iterator[Path]:
        if name in self._builtin:
            return
        path = self._files.get(name)
        if path is None:
            raise FileNotFoundError(f"{self.modules} has no module {name}")
        # From .modinfo, NUL-terminated "key=value": modules.dep is only written when a package is installed.
        needs = re.search(rb"\0depends=([^\0]*)\0", module_content(path))
        for need in needs[1].decode().split(",") if needs else []:
            if need:
                yield from self._with_needs(module_name(need))
        yield path


def unpack(deb: Path, folder: Path) -> None:
    """Unpacks the `WANTED` of a kernel package."""
    for name, member, content in members(deb):
        if member.isfile() and any(fnmatch(name.removeprefix("usr/"), wanted) for wanted in WANTED):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())


def module_content(path: Path) -> bytes:
    """A module as busybox's insmod takes it: not compressed."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def plain_image(image: bytes) -> bytes:
    """The ELF file inside of an x86 bzImage, so that nobody has to decompress it under emulation.

    The image itself where it is no bzImage, or is compressed by something else than xz. The header is that of
    Documentation/arch/x86/boot.rst in Linux.
    """
    if image[0x202:0x206] != b"HdrS":
        return image
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset :][:length]
    if not payload.startswith(b"\xfd7zXZ"):
        return image
    unpacked = lzma.LZMADecompressor().decompress(payload)  # the size of the result follows the stream
    return unpacked if unpacked.startswith(b"\x7fELF") else image
