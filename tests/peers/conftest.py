"""The peers as fixtures. A missing one is a failure where CI is set, and elsewhere a skip that says why."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from . import kernels
from .guests import QemuGuest, UmlGuest
from .hardware import Answer, Hardware, compile_shim, refuse


def need(present: object, what: str) -> None:
    """Ends the test here if a peer is not on this machine."""
    if present:
        return
    reason = f"no {what} here: scripts/test installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def uml(tmp_path: Path) -> Callable[..., UmlGuest]:
    """Makes a User-Mode Linux guest: `uml(script=..., devices=[(socket, 2)])`."""
    kernel = kernels.uml()
    need(kernel, "user-mode-linux")
    need(kernel and shutil.which("busybox"), "busybox-static")
    assert kernel is not None
    return partial(UmlGuest, kernel, tmp_path / "uml")


@pytest.fixture
def qemu(tmp_path: Path) -> Callable[..., QemuGuest]:
    """Makes a guest of QEMU: `qemu(script=..., devices=[(socket, "vhost-user-blk-pci")])`."""
    kernel = kernels.debian()
    need(shutil.which("qemu-system-x86_64"), "qemu-system-x86")
    need(kernel, "unpacked Debian kernel")
    assert kernel is not None
    return partial(QemuGuest, kernel, tmp_path / "qemu")


@dataclass(frozen=True)
class StorageDaemon:
    """A qemu-storage-daemon that serves one image as vhost-user-blk."""

    socket: Path
    process: subprocess.Popen[bytes]


@pytest.fixture
def storage_daemon(tmp_path: Path) -> Iterator[Callable[[Path], StorageDaemon]]:
    """Starts QEMU's block backend for a raw image: `storage_daemon(image).socket`."""
    need(shutil.which("qemu-storage-daemon"), "qemu-system-common")
    with ExitStack() as stack:

        def start(image: Path, queues: int = 1) -> StorageDaemon:
            socket, pid_file = tmp_path / f"{image.name}.sock", tmp_path / f"{image.name}.pid"
            command = ["qemu-storage-daemon", "--pidfile", str(pid_file)]
            command += ["--blockdev", f"file,node-name=disk,filename={image}"]
            export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues}"
            command += ["--export", f"{export},addr.type=unix,addr.path={socket}"]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            while not pid_file.exists():  # written once all exports are up
                assert process.poll() is None, f"qemu-storage-daemon ended with {process.returncode}"
                time.sleep(0.01)
            return StorageDaemon(socket, process)

        yield start


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that puts a test in the place of hardware."""
    need(shutil.which("cc"), "C compiler")
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def hardware(shim: Path, tmp_path: Path) -> Iterator[Callable[..., Hardware]]:
    """Makes hardware that answers ioctls as the test says: `hardware(answer)`."""
    with ExitStack() as stack:

        def make(answer: Answer = refuse) -> Hardware:
            return stack.enter_context(Hardware(shim, tmp_path / "hardware", answer))

        yield make
