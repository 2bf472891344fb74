"""Linux guests on a host without hardware virtualization: User-Mode Linux, and QEMU with its TCG."""

import os
import re
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from xenvirt.lab.kernel import Kernel

from . import initramfs

PATIENCE = 180.0
"""Seconds that a guest may take: 20 times of what it takes on two idle cores."""


class GuestError(AssertionError):
    """A guest that failed, died or was too slow; the message ends with its console."""


@dataclass(frozen=True)
class Outcome:
    """What a guest left: its console, and the lines of its `result` calls."""

    console: str

    def all(self, key: str) -> list[str]:
        """The words of each `result KEY WORDS`, in order."""
        return re.findall(rf"^@@ {re.escape(key)} ?(.*?)\r?$", self.console, re.MULTILINE)

    def one(self, key: str) -> str:
        """The words of the one `result KEY WORDS`."""
        found = self.all(key)
        if len(found) != 1:
            raise GuestError(f"{len(found)} results {key!r}, one was wanted\n{self.console}")
        return found[0]

    def features(self, key: str) -> int:
        """A line of /sys/bus/virtio/devices/*/features as a number: it has bit 0 first."""
        return int(self.one(key)[::-1], 2)


def alive_in_session(session: int) -> Iterator[str]:
    """The processes of a session, but for those that are dead and wait to be reaped."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # proc(5): the name, which may hold anything, then state, parent, group, session.
            state, _, _, its_session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            if state != "Z" and int(its_session) == session:
                yield process.name


class Running:
    """A guest that was started; leaving the `with` block ends it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._console = bytearray()
        self._grew = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="guest console", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while data := os.read(output.fileno(), 65536):
                with self._grew:
                    self._console += data
                    self._grew.notify_all()
        with self._grew:
            self._ended = True
            self._grew.notify_all()

    @property
    def process_group(self) -> int:
        """The process group and session that all of the guest's processes are in."""
        return self._process.pid

    @property
    def console(self) -> str:
        """All that the guest has printed so far."""
        with self._grew:
            return self._console.decode(errors="replace")

    def expect(self, text: str, timeout: float = PATIENCE) -> None:
        """Waits until the guest has printed `text`."""
        with self._grew:
            self._grew.wait_for(lambda: text.encode() in self._console or self._ended, timeout)
        if text not in self.console:
            raise GuestError(f"the guest never said {text!r} ({timeout:g} s)\n{self.console}")

    def finish(self, timeout: float = PATIENCE) -> Outcome:
        """Waits until the guest has switched itself off; its script must have ended well."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise GuestError(f"the guest was not done after {timeout:g} s\n{self.console}") from None
        self.kill()  # what it left of its own process group
        outcome = Outcome(self.console)
        if outcome.all("status") != ["0"] or outcome.all("failed"):
            raise GuestError(f"the guest's script failed\n{outcome.console}")
        return outcome

    def kill(self) -> None:
        """Ends the guest at once, if it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process_group, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        while any(alive_in_session(self.process_group)):  # UML's others die a moment later
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@dataclass
class Guest(ABC):
    """A guest to start: what stands in its initramfs, and its devices.

    `modules` (no `.ko`) bring what they need; `programs` are the host's, with their libraries.
    """

    kernel: Kernel
    folder: Path
    script: str
    modules: Sequence[str] = ()
    programs: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    memory: int = 256
    """Mebibytes."""

    transport_modules: ClassVar[tuple[str, ...]] = ()
    """The modules that every guest of this kind needs."""

    @abstractmethod
    def command(self, initrd: Path) -> list[str]:
        """The command that runs it in the foreground, its console on stdout."""

    def start(self) -> Running:
        """Starts it; it is over when its script is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        initrd = self.folder / f"initrd-{time.monotonic_ns()}"
        initrd.write_bytes(
            initramfs.build(
                self.script,
                modules=self.kernel.modules_for([*self.transport_modules, *self.modules]),
                programs=self.programs,
                files=self.files,
            )
        )
        process = subprocess.Popen(
            self.command(initrd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # UML keeps the guest's memory in a file below TMPDIR, and maps it executable.
            env={**os.environ, "TMPDIR": "/dev/shm", "HOME": str(self.folder)},  # noqa: S108
            start_new_session=True,
        )
        return Running(process)

    def run(self, timeout: float = PATIENCE) -> Outcome:
        """Starts it and waits until it is over."""
        with self.start() as running:
            return running.finish(timeout)


@dataclass
class UmlGuest(Guest):
    """User-Mode Linux: a kernel that is a process, and speaks vhost-user itself."""

    devices: Sequence[tuple[Path, int]] = ()
    """Socket and virtio device id of each device."""

    def command(self, initrd: Path) -> list[str]:
        """See `Guest.command`."""
        return [
            str(self.kernel.image),
            f"mem={self.memory}M",
            f"initrd={initrd}",
            f"uml_dir={self.folder}/",
            *(f"virtio_uml.device={socket}:{device_id}" for socket, device_id in self.devices),
            "con=null",
            "con0=null,fd:1",
            "quiet",
        ]


@dataclass
class QemuGuest(Guest):
    """A guest of QEMU without KVM; QEMU is the vhost-user frontend."""

    devices: Sequence[tuple[Path, str]] = ()
    """Socket and `-device` (without chardev) of each: `(path, "vhost-user-blk-pci,num-queues=2")`."""
    vcpus: int = 2
    hugepages: bool = False
    """The guest's memory is of 2 MiB pages; who asks has reserved them."""
    arguments: Sequence[str] = ()
    program: Sequence[str] = ("qemu-system-x86_64",)

    transport_modules: ClassVar[tuple[str, ...]] = ("virtio_pci",)

    def command(self, initrd: Path) -> list[str]:
        """See `Guest.command`."""
        memory = f"memory-backend-memfd,id=memory,size={self.memory}M,share=on"
        if self.hugepages:
            memory += ",hugetlb=on,hugetlbsize=2M"
        devices = []
        for index, (socket, device) in enumerate(self.devices):
            devices += ["-chardev", f"socket,id=chardev{index},path={socket}"]
            devices += ["-device", f"{device},chardev=chardev{index}"]
        return [
            *(*self.program, "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", str(self.vcpus)),
            *("-m", f"{self.memory}", "-object", memory, "-numa", "node,memdev=memory"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-kernel", str(self.kernel.image), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *devices,
            *self.arguments,
        ]
