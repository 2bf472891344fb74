"""A Linux domU: dom0's kernel, busybox, and a script; xl starts it, its console is read.

    devices = [MmioDevice(0x200_0000, 33), MmioDevice(0x200_0200, 34, grants=True)]
    with LinuxGuest("head -c 32 /dev/hwrng | od -An -tx1; echo done", devices=devices) as guest:
        serve_virtio_devices(guest.domid)  # every device, before it runs: a slot that nobody serves panics it
        guest.unpause()
        guest.wait_for("done")

What holds on aarch64, where dom0 has the lab's own kernel (`Lab.boot(kernel="own")`, mark "aarch64"):

- `devices` are put into the guest's device tree. 0x200_0000 to 0x20F_FFFF are meant for their registers,
  33 to 43 for their interrupts.
- With `grants` the guest offers its memory by grant references to domain 0 (addresses have bit 63 set), and
  insists on VIRTIO_F_ACCESS_PLATFORM (bit 33). What goes to the device is granted read-only.
- `vuart` is set, which gives the domain interrupts at all; with a disk in `configuration`
  (`specification=virtio`) that takes 0x200_0000 and 33, and xl waits for its backend in the xenstore.
- DeviceID 0 makes the guest pass over a device.

On x86_64, where dom0 has Debian's kernel and QEMU:

- with `acpi`, a table of `xenvirt.xen.acpi_table`, it is an HVM guest which finds devices there; else a PVH
  guest without any. The modules named in /modules/guest are loaded.
- An HVM guest is slow to begin: its firmware reads kernel and initrd byte by byte, some 150 KB a second.

The script runs as root in busybox's shell with proc, sysfs, devtmpfs and a tmpfs on /tmp; when it ends the
guest powers off. What it prints comes to the console, as do its kernel's errors (those above level 4).
"""

from __future__ import annotations

import gzip
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from xenvirt.lab.archive import Archive

from .device_tree import MmioDevice, passthrough

BUSYBOX = Path("/usr/bin/busybox")
GUEST_MODULES = Path("/modules/guest")
TIMEOUT = 120.0
"""Seconds for what a guest is waited for; an emulated one boots in two to ten."""

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /modules/guest 2> /dev/null); do insmod /modules/$module; done
sh /script </dev/null 2>&1
sync
poweroff -f
"""

CONFIGURATION = """\
name = "{name}"
type = "{kind}"
kernel = "/boot/vmlinuz"
ramdisk = "{folder}/initrd"
memory = {memory}
vcpus = {processors}
extra = "console=hvc0 rdinit=/init quiet loglevel=4 panic=-1 {words}"
on_reboot = "destroy"
on_crash = "destroy"
"""


def xl(*words: str) -> str:
    """What an xl command prints; what it complains of is in the exception of one that fails."""
    done = subprocess.run(["xl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"xl {' '.join(words)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


HVM = """\
acpi_firmware = "{folder}/acpi"
vga = "none"
vnc = 0
"""
HVM_WORDS = "iommu=noaperture"
"""Else the kernel looks for an AGP bridge on each of 256 buses, by 65536 questions to QEMU."""


class LinuxGuest:
    """A domU that is created paused, and destroyed when the block ends.

    `configuration` are further lines for xl, `words` further ones for its kernel, `files` further ones for
    its file system (path to content, executable); `memory` is in MiB. `acpi` makes it an HVM guest.
    """

    _made = 0

    def __init__(
        self,
        script: str,
        *,
        devices: Iterable[MmioDevice] = (),
        files: dict[str, bytes] | None = None,
        words: str = "",
        configuration: str = "",
        acpi: bytes | None = None,
        memory: int = 128,
        processors: int = 1,
    ) -> None:
        LinuxGuest._made += 1
        self.name = f"linux-{os.getpid()}-{LinuxGuest._made}"
        self.console = ""
        with tempfile.TemporaryDirectory(prefix="guest-") as folder:
            archive = initrd(script, files or {})
            Path(folder, "initrd").write_bytes(archive if acpi is None else gzip.compress(archive))
            text = CONFIGURATION.format(
                name=self.name,
                kind="pvh" if acpi is None else "hvm",
                folder=folder,
                memory=memory,
                processors=processors,
                words=words if acpi is None else f"{HVM_WORDS} {words}",
            )
            if acpi is not None:
                Path(folder, "acpi").write_bytes(acpi)
                text += HVM.format(folder=folder)
            if os.uname().machine == "aarch64":
                Path(folder, "tree").write_bytes(passthrough(devices))
                text += f'vuart = "sbsa_uart"\ndevice_tree = "{folder}/tree"\n'
            Path(folder, "cfg").write_text(text + configuration)
            xl("create", "-p", f"{folder}/cfg")
        self._terminal = -1
        try:
            self.domid = int(xl("domid", self.name))
            path = ["xenstore-read", f"/local/domain/{self.domid}/console/tty"]
            terminal = subprocess.run(path, check=True, capture_output=True, text=True).stdout.strip()
            self._terminal = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except BaseException:
            self.destroy()
            raise

    def unpause(self) -> None:
        """Lets it run."""
        xl("unpause", str(self.domid))

    def wait_for(self, pattern: str, timeout: float = TIMEOUT) -> re.Match[str]:
        """Waits until a regular expression is found in what the console has said, from the beginning."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.console)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._terminal], [], [], left)[0]:
                raise TimeoutError(f"no {pattern!r} on the guest's console in {timeout} s:\n{self.console}")
            try:
                said = os.read(self._terminal, 4096)
            except OSError:
                said = b""
            if not said:
                raise EOFError(f"the guest is gone without {pattern!r}:\n{self.console}")
            self.console += said.decode(errors="replace").replace("\r", "")
        return found

    def send(self, line: str) -> None:
        """Types a line on its console."""
        os.write(self._terminal, line.encode() + b"\n")

    def destroy(self) -> None:
        """Ends it, if it has not ended."""
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        subprocess.run(["xl", "destroy", self.name], capture_output=True, check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


def initrd(script: str, files: dict[str, bytes]) -> bytes:
    """The guest's file system, in memory."""
    archive = Archive()
    for folder in ("proc", "sys", "dev", "tmp", "mnt"):
        archive.folder(folder)
    archive.file("/bin/busybox", BUSYBOX.read_bytes(), executable=True)
    archive.link("/bin/sh", "busybox")
    archive.file("/init", INIT.encode(), executable=True)
    archive.file("/script", script.encode())
    if GUEST_MODULES.exists():
        for name in GUEST_MODULES.read_text().split():
            archive.file(f"/modules/{name}", (GUEST_MODULES.parent / name).read_bytes())
        archive.file("/modules/guest", GUEST_MODULES.read_bytes())
    for path, content in files.items():
        archive.file(path, content, executable=True)
    return archive.finish()
