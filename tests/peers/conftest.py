"""The peers as fixtures; a test whose peer is missing is skipped."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from xenvirt import Daemon

from . import kernels, libblkio
from .crates import Crate
from .dpdk import Testpmd
from .guests import QemuGuest, UmlGuest
from .hardware import Answer, Hardware, compile_shim, refuse
from .newer_qemu import command


def need(present: object, what: str) -> None:
    """Skips the test if a peer is not on this machine; in CI that fails, see tests/conftest.py."""
    if not present:
        pytest.skip(f"no {what} here (scripts/test installs what it can)")


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


@pytest.fixture
def newer_qemu(qemu: Callable[..., QemuGuest]) -> Callable[..., QemuGuest]:
    """Makes a guest of a QEMU that is a frontend for devices of any type:
    `newer_qemu(script=..., devices=[(socket, "vhost-user-test-device-pci,virtio-id=3,num_vqs=2")])`."""
    program = command()
    need(program, "QEMU of Debian's backports")
    return partial(qemu, program=program)


@pytest.fixture
def privileged() -> None:
    """Lets a test make network namespaces and tap interfaces."""
    need(os.geteuid() == 0, "root for network namespaces")
    need(shutil.which("ip"), "iproute2")
    need(os.access("/dev/net/tun", os.R_OK | os.W_OK), "/dev/net/tun")


@pytest.fixture
def storage_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts QEMU's block backend for a raw image: `storage_daemon(image, queues=2).socket`."""
    need(shutil.which("qemu-storage-daemon"), "qemu-system-common")
    with ExitStack() as stack:

        def start(image: Path, queues: int = 1) -> Daemon:
            export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues}"
            return stack.enter_context(
                Daemon(
                    *("qemu-storage-daemon", "--blockdev", f"file,node-name=disk,filename={image}"),
                    *("--export", f"{export},addr.type=unix,addr.path={{socket}}"),
                )
            )

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


@pytest.fixture
def blkio() -> Callable[[str], Path]:
    """Finds one of libblkio's programs: `blkio("blkio-copy")`."""

    def find(name: str) -> Path:
        need(libblkio.program(name).exists(), f"{name} of libblkio")
        return libblkio.program(name)

    return find


@pytest.fixture
def daemon_program() -> Callable[[Crate], Path]:
    """Finds one of rust-vmm's daemons: `daemon_program(crates.RNG)`."""

    def find(crate: Crate) -> Path:
        need(crate.program.exists(), f"{crate.name} {crate.version}")
        return crate.program

    return find


@pytest.fixture
def testpmd(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Testpmd]:
    """Makes a testpmd with one port: `testpmd(f"net_virtio_user0,path={socket}", core=1)`."""
    need(shutil.which("dpdk-testpmd"), "dpdk-dev")

    def make(port: str, core: int = 0) -> Testpmd:
        return Testpmd(port, tmp_path_factory.mktemp("dpdk"), core=core)

    return make


@pytest.fixture
def tcp_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
