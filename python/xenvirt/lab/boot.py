"""QEMU without KVM as the machine that Xen boots on."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xenvirt.errors import LabError

from .agent import PORT_NAME
from .system import System

SOCKET = "agent.sock"
CONSOLE = "console.log"
OUTPUT = "qemu.log"
LAB_FOLDER = "lab"


@dataclass(frozen=True)
class Machine:
    """What is to be booted."""

    system: System
    dom0: str
    """How Xen runs dom0: "pv" or "pvh"; Arm knows but one way, "arm"."""
    share: Path
    """The folder of the host that dom0 has as /host."""
    memory: int = 2048
    """MiB of the machine, of which dom0 gets `dom0_memory`."""
    dom0_memory: int = 1024
    once: bool = False
    """It powers off when its first client goes away."""

    def command(self, folder: Path) -> list[str]:
        """QEMU's command line; it is run in `folder`, where its socket and its console's file appear."""
        for path in (folder, self.share):
            if "," in str(path):
                raise LabError(f"QEMU takes no comma in the name of a shared folder: {path}")
        emulator = f"qemu-system-{self.architecture}"
        if shutil.which(emulator) is None:
            raise LabError(
                f"no {emulator} here; in Debian it is in the package {_QEMU_PACKAGES[self.architecture]}"
            )
        return [
            *(emulator, "-accel", "tcg,thread=multi,tb-size=1024", "-m", f"{self.memory}"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
            *("-serial", f"file:{CONSOLE}"),
            *self._x86(),
            *self._devices(
                "pci", ",iommu_platform=on,disable-legacy=on" if self.dom0 == "pvh" else "", folder
            ),
        ]

    @property
    def architecture(self) -> str:
        """As QEMU and uname call it."""
        return {"amd64": "x86_64", "arm64": "aarch64"}[self.system.recipe.suite.architecture]

    @property
    def _kernel_line(self) -> str:
        return f"console=hvc0 rdinit=/init quiet panic=-1{' xenvirt.once' if self.once else ''}"

    def _x86(self) -> list[str]:
        # Without these features, because QEMU 7.2's TCG fails in them: smap (page fault on IRET from ring 3),
        # rdtscp (wrong SVM intercept), xsave and pku (xcr0 is not restored across VMRUN).
        processor = "max,-smap,-rdtscp,-xsave,-pku"
        pvh = self.dom0 == "pvh"
        xen = (
            f"console=com1 com1=115200 dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M dom0_max_vcpus=1"
        )
        return [
            *("-cpu", processor, "-smp", "2", "-M", "q35" if pvh else "pc"),
            *(("-device", "amd-iommu") if pvh else ()),
            *("-kernel", str(self.system.hypervisor), "-append", f"{xen} dom0=pvh" if pvh else xen),
            *("-initrd", f"{self.system.kernel} {self._kernel_line},{self.system.initrd}"),
        ]

    def _devices(self, bus: str, options: str, folder: Path) -> list[str]:
        shares = []
        for tag, path in (("lab", folder / LAB_FOLDER), ("host", self.share)):
            shares += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap"]
            shares += ["-device", f"virtio-9p-{bus},fsdev={tag},mount_tag={tag}{options}"]
        return [
            *shares,
            *("-device", f"virtio-serial-{bus},max_ports=2{options}"),
            *("-chardev", f"socket,id=agent,path={SOCKET},server=on,wait=off"),
            *("-device", f"virtserialport,nr=1,chardev=agent,name={PORT_NAME}"),
        ]


_QEMU_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def start(machine: Machine, folder: Path, keep_open: int) -> subprocess.Popen[bytes]:
    """Starts it, in a session of its own so that it may outlive us; it keeps the descriptor `keep_open`."""
    (folder / LAB_FOLDER).mkdir()
    command = machine.command(folder)
    with (folder / OUTPUT).open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(keep_open,),
        )
