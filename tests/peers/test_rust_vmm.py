"""rust-vmm's daemons start and listen, with the hardware that is played for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt import Daemon

from . import crates, rust_vmm
from .buses import I2cMemory, Keyboard, SpiInverter
from .conftest import need
from .hardware import Hardware
from .workloads import MiB, new_image


@pytest.fixture(autouse=True)
def _built() -> None:
    for crate in crates.CRATES:
        need(crate.program.exists(), f"{crate.name} {crate.version}")


@pytest.mark.parametrize(
    "daemon",
    [
        rust_vmm.rng(),
        rust_vmm.rng(crates.RNG_XEN),
        rust_vmm.vsock(),
        rust_vmm.vsock(crates.VSOCK_XEN),
        rust_vmm.sound(),
    ],
    ids=["rng", "rng-xen", "vsock", "vsock-xen", "sound"],
)
def test_one_that_wants_nothing_listens(daemon: Daemon) -> None:
    with daemon:
        assert Path(daemon.socket).is_socket()


@pytest.mark.parametrize("crate", [crates.CONSOLE, crates.CONSOLE_XEN], ids=["plain", "xen"])
def test_the_console_listens(crate: crates.Crate, tcp_port: int) -> None:
    with rust_vmm.console(crate, tcp_port=tcp_port) as daemon:
        assert Path(daemon.socket).is_socket()


def test_scsi_listens(tmp_path: Path) -> None:
    with rust_vmm.scsi(new_image(tmp_path / "disk", MiB)) as daemon:
        assert Path(daemon.socket).is_socket()


def test_i2c_asks_for_the_adapters_functions(hardware: Callable[..., Hardware]) -> None:
    played = hardware(I2cMemory(0x20))
    with rust_vmm.i2c(played, address=0x20):
        assert [hex(asked.number) for asked in played.ioctls][:1] == ["0x705"]


def test_spi_detects_the_controller(hardware: Callable[..., Hardware]) -> None:
    played = hardware(SpiInverter())
    with rust_vmm.spi(played):
        assert {asked.number & 0xFF for asked in played.ioctls} == {3, 4, 5}


def test_can_opens_the_bus(hardware: Callable[..., Hardware]) -> None:
    daemon, _ = rust_vmm.can(hardware())
    with daemon:
        assert Path(daemon.socket).is_socket()


def test_input_asks_who_the_device_is(hardware: Callable[..., Hardware]) -> None:
    played = hardware(Keyboard([30, 48]))
    daemon, _ = rust_vmm.input_device(played)
    with daemon:
        assert 0x06 in {asked.number & 0xFF for asked in played.ioctls}
