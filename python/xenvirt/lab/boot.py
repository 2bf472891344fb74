"""QEMU without KVM as the machine that Xen boots on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from xenvirt.errors import LabError

from .agent import PORT_NAME
from .system import System

SOCKET = "agent.sock"
CONSOLE = "console.log"
OUTPUT = "qemu.log"
LAB_FOLDER = "lab"
_LONGEST_SOCKET = 107
_XEN_OPTIONS = "bootscrub=off sched_credit2_migrate_resist=0"
"""QEMU's memory begins as zeroes, and takes none of the host's before it is touched.

A vCPU that ran for 20 ms unseen by Xen, as the host gave QEMU no time, has the least credit there is. Then
no processor but its last one takes it, as each resists migration, and if Xen woke another one dom0 stands
still for ever, with all processors idle (Xen 4.17, runq_candidate in xen/common/sched/credit2.c).
"""


@dataclass(frozen=True)
class Machine:
    """What is to be booted."""

    system: System
    dom0: str
    """How Xen runs dom0: "pv" or "pvh"."""
    share: Path
    """The folder of the host that dom0 has as /host."""
    memory: int = 2048
    """MiB of the machine, of which dom0 gets `dom0_memory`."""
    dom0_memory: int = 1024
    once: bool = False
    """It powers off when its first client goes away."""
    counted: bool = False
    """Its clocks count instructions, one a nanosecond: what takes how long repeats, whatever else the host
    does. It has one thread for all its processors, and does not wait while they idle."""

    def command(self, folder: Path) -> list[str]:
        """QEMU's command line; its socket and its console's file appear in `folder`."""
        for path in (folder, self.share):
            if "," in str(path):
                raise LabError(f"QEMU takes no comma in the name of a shared folder: {path}")
        if len(os.fsencode(folder / SOCKET)) > _LONGEST_SOCKET:
            raise LabError(f"{folder} is too long a name for sockets: set XDG_RUNTIME_DIR to a shorter one")
        emulator = f"qemu-system-{self.architecture}"
        if shutil.which(emulator) is None:
            raise LabError(
                f"no {emulator} here; in Debian it is in the package {_QEMU_PACKAGES[self.architecture]}"
            )
        return [
            *(emulator, "-accel", f"tcg,thread={'single' if self.counted else 'multi'},tb-size=1024"),
            *(("-icount", "shift=0,sleep=off") if self.counted else ()),
            *("-m", f"{self.memory}"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
            *("-serial", f"file:{folder / CONSOLE}"),
            *(self._x86(folder) if self.architecture == "x86_64" else self._aarch64(folder)),
        ]

    @property
    def architecture(self) -> str:
        """As QEMU and uname call it."""
        return {"amd64": "x86_64", "arm64": "aarch64"}[self.system.recipe.suite.architecture]

    @property
    def _dom0_memory(self) -> str:
        return f"dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M"

    @property
    def _kernel_line(self) -> str:
        return f"console=hvc0 rdinit=/init quiet panic=-1{' xenvirt.once' if self.once else ''}"

    def _x86(self, folder: Path) -> list[str]:
        # Without these features, because QEMU 7.2's TCG fails in them: smap (page fault on IRET from ring 3),
        # rdtscp (wrong SVM intercept), xsave and pku (xcr0 is not restored across VMRUN).
        processor = "max,-smap,-rdtscp,-xsave,-pku"
        pvh = self.dom0 == "pvh"
        xen = f"console=com1 com1=115200 {_XEN_OPTIONS} {self._dom0_memory} dom0_max_vcpus=1"
        # A PVH dom0's devices go through the IOMMU; QEMU's virtio does so only if told.
        options = ",iommu_platform=on,disable-legacy=on" if pvh else ""
        return [
            *("-cpu", processor, "-smp", "2", "-M", "q35" if pvh else "pc"),
            *(("-device", "amd-iommu") if pvh else ()),
            *("-kernel", str(self.system.hypervisor), "-append", f"{xen} dom0=pvh" if pvh else xen),
            *("-initrd", f"{self.system.kernel} {self._kernel_line},{self.system.initrd}"),
            *self._devices("pci", options, folder),
        ]

    def _aarch64(self, folder: Path) -> list[str]:
        # Where the guest loader puts what Xen boots: above Xen, and the kernel (64 MB) below the archive.
        kernel, initrd = 0x4900_0000, 0x5000_0000
        return [
            *("-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57", "-smp", "2"),
            *(
                "-kernel",
                str(self.system.hypervisor),
                "-append",
                f"console=dtuart {_XEN_OPTIONS} {self._dom0_memory}",
            ),
            *(
                "-device",
                f"guest-loader,addr={kernel:#x},kernel={self.system.kernel},bootargs={self._kernel_line}",
            ),
            *("-device", f"guest-loader,addr={initrd:#x},initrd={self.system.initrd}"),
            *("-global", "virtio-mmio.force-legacy=false"),
            *self._devices("device", "", folder),
        ]

    def _devices(self, bus: str, options: str, folder: Path) -> list[str]:
        shares = []
        for tag, path in (("lab", folder / LAB_FOLDER), ("host", self.share)):
            shares += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap"]
            shares += ["-device", f"virtio-9p-{bus},fsdev={tag},mount_tag={tag}{options}"]
        return [
            *shares,
            *("-device", f"virtio-serial-{bus},max_ports=2{options}"),
            *("-chardev", f"socket,id=agent,path={folder / SOCKET},server=on,wait=off"),
            *("-device", f"virtserialport,nr=1,chardev=agent,name={PORT_NAME}"),
        ]


_QEMU_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def start(machine: Machine, folder: Path, keep_open: int) -> int:
    """Starts it, in a session of its own so that it may outlive us; it keeps the descriptor `keep_open`.

    Gives its process id; it is our child.
    """
    (folder / LAB_FOLDER).mkdir()
    emulator, *arguments = machine.command(folder)
    write = os.O_WRONLY | os.O_CREAT
    return os.posix_spawnp(
        emulator,
        [emulator, *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder / OUTPUT), write, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, keep_open, 3),
        ],
        setsid=True,
    )
